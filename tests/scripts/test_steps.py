"""Long commands of a set-up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts.steps import SetupError, last_words, run, start, stop, watch

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def started(process: subprocess.Popen[bytes], log: Path) -> int:
    """Waits until both processes run, and returns the child's id."""
    until = watch(process, "waiting", log, until=lambda: "up" in last_words(log, 2))
    assert until is None
    return next(int(word) for word in last_words(log, 2).split() if word.isdigit())


def test_stop_ends_children_that_ignore_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start([sys.executable, "-c", PARENT], log)
    child = started(process, log)
    stop(process, patience=0.2)
    assert process.returncode is not None
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys, time; from pathlib import Path; from scripts.steps import start\n"
        "process = start([sys.executable, '-c', 'import time; time.sleep(600)'], Path(sys.argv[1]))\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, log],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(20)


def test_run_shows_the_end_of_the_log(tmp_path: Path) -> None:
    code = "import sys; print('first'); print('x\\ry', file=sys.stderr); sys.exit(3)"
    command = [sys.executable, "-u", "-c", code]
    assert run("working", command, tmp_path / "log", allowed=(0, 3)) == 3
    with pytest.raises(SetupError, match=r"working: failed with exit status 3\.(.|\n)*first\ny$"):
        run("working", command, tmp_path / "log")


def test_run_passes_variables(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.environ['GREETING'])"]
    run("working", command, tmp_path / "log", {"GREETING": "hello"})
    assert last_words(tmp_path / "log") == "hello"


def test_an_interrupted_watch_stops_the_process(tmp_path: Path) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    process = start([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log")
    with pytest.raises(KeyboardInterrupt):
        watch(process, "waiting", tmp_path / "log", until=interrupt)
    assert process.poll() is not None
