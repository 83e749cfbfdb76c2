"""Outside programs, started as from a shell."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# Runs a command, adopts its orphans, and reports the orphans that do not end by themselves.
_WATCH = """
import ctypes, json, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
# A suite in the background of a shell ignores SIGINT, and its child processes would inherit that.
process = subprocess.Popen(sys.argv[2:], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
open(sys.argv[1] + ".pid", "w").write(str(process.pid))
code = process.wait()

def late(*_):
    raise TimeoutError

signal.signal(signal.SIGALRM, late)
signal.alarm(10)
try:
    while True:
        os.wait()
except (ChildProcessError, TimeoutError):
    signal.alarm(0)
left = []
for path in os.listdir("/proc"):
    try:
        fields = open(f"/proc/{path}/stat").read().rpartition(")")[2].split()
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            left.append(open(f"/proc/{path}/cmdline").read().replace("\\0", " "))
    except OSError:
        pass
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "left": left}, file)
"""


class Program:
    """A running command, and the processes that it leaves behind."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._result = folder / "watch.json"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WATCH, str(self._result), *command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command, and not to its children."""
        psutil.Process(int(Path(f"{self._result}.pid").read_text())).send_signal(number)

    def wait(self) -> tuple[int, list[str]]:
        """Waits for the end. Returns the exit status, and the command lines of the processes that are left."""
        self.output, _ = self._process.communicate(timeout=150)
        result = json.loads(self._result.read_text())
        return result["code"], result["left"]

    def end(self) -> None:
        """Kills the processes that still run."""
        if self._process.poll() is None:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
            self._process.kill()
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts a command in an empty folder."""
    programs: list[Program] = []

    def start(*command: str, **environment: str) -> Program:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RLM_")}
        program = Program(list(command), tmp_path, {**clean, "COLUMNS": "100", **environment})
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.end()


@pytest.fixture
def verifiers_command() -> Callable[..., list[str]]:
    """A command of verifiers, given by its name in 0.4. Before 0.4 `vf-eval` was named `eval`, and by default ran rollouts in
    worker processes."""
    old = importlib.metadata.version("verifiers").startswith("0.3")

    def command(name: str, *arguments: str) -> list[str]:
        program = str(Path(sys.executable).with_name(name.removeprefix("vf-") if old else name))
        in_process = ["--no-serve"] if old and name == "vf-eval" and "--resume" not in arguments else []
        return [program, *arguments, *in_process]

    return command
