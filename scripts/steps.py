"""Long commands of a set-up, run with progress shown and stopped with everything that they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path


class SetupError(Exception):
    """Something is missing or failed. The message says what, and what to do about it."""


def _die_with_parent() -> None:
    """Runs in the child before exec: asks Linux for SIGTERM when the parent dies, even by SIGKILL."""
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def start(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `command` in a session of its own, without stdin, its output in the file `log`.

    Args:
        environment: variables beside those of this process.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def stop(process: subprocess.Popen[bytes], patience: float = 20.0) -> None:
    """Ends a process that `start` made and all of its session; by force after `patience` seconds. A second Ctrl-C
    does not disturb it."""
    with _undisturbed():
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            _signal_group(process.pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                process.poll()  # reaps the leader, which would count as a member for ever
                if not _signal_group(process.pid, 0):
                    return
                time.sleep(0.05)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignores interrupts for a while, where handlers can be set: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _signal_group(group: int, number: int) -> bool:
    """Returns whether the process group still has a member."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def last_words(log: Path, lines: int = 1) -> str:
    """The last non-empty lines of a log. A progress bar, drawn over and over, counts as its last state."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65_536))
        text = file.read().decode(errors="replace")
    found = [line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return "\n".join([line for line in found if line][-lines:])


class Progress:
    """A status line: drawn over on a terminal, else printed at long intervals."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._printed = self._began
        if not self._terminal:
            print(f"{label} ...", file=sys.stderr, flush=True)

    def show(self, detail: str) -> None:
        """Shows the label, the seconds so far and `detail`, if it is time to."""
        now = time.monotonic()
        line = f"{self._label} ... {now - self._began:.0f} s  {detail}"
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)
        elif now - self._printed >= 15:
            self._printed = now
            print(f"  {line[:160]}", file=sys.stderr, flush=True)

    def end(self, how: str = "done") -> None:
        """Closes the line with how it ended and the seconds it took."""
        start_of_line = "\r\x1b[K" if self._terminal else ""
        seconds = time.monotonic() - self._began
        print(f"{start_of_line}{self._label}: {how}, {seconds:.0f} s", file=sys.stderr, flush=True)


def watch(
    process: subprocess.Popen[bytes], label: str, log: Path, until: Callable[[], bool] = lambda: False
) -> int | None:
    """Shows the progress of `process` until it ends or `until` holds.

    Returns:
        the exit status, None if `until` came first. The process is stopped if this is interrupted.
    """
    progress = Progress(label)
    try:
        while process.poll() is None:
            if until():
                progress.end("ready")
                return None
            progress.show(last_words(log))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)
    except BaseException:
        progress.end("interrupted")
        stop(process)
        raise
    progress.end("done" if process.returncode == 0 else f"exit status {process.returncode}")
    return process.returncode


def run(
    label: str,
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    allowed: Sequence[int] = (0,),
) -> int:
    """Runs `command` to its end, its output in the file `log`, and returns its exit status.

    Raises:
        SetupError: the status is not one of `allowed`; the message holds the end of the log.
    """
    status = watch(start(command, log, environment), label, log)
    assert status is not None
    if status not in allowed:
        raise SetupError(
            f"{label}: failed with exit status {status}. The end of {log}:\n{last_words(log, 15)}"
        )
    return status
