"""Long commands of a set-up: they show their progress, and are stopped with all their child processes."""

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
    """Something is missing or failed. The message says what, and what to do."""


def _die_with_parent() -> None:
    """Runs in the child before exec: asks Linux for SIGTERM when the parent dies, even by SIGKILL."""
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def start(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command in its own session, without stdin.

    Args:
        command: program and arguments.
        log: file for its output.
        environment: variables in addition to those of this process.
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
    """Ends a process made by `start`, and all of its session. A second Ctrl-C does not interrupt this.

    Args:
        process: the process.
        patience: seconds from SIGTERM to SIGKILL.
    """
    with _interrupts_ignored():
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            _signal_group(process.pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                process.poll()  # reaps the leader: a zombie counts as a member of the group
                if not _signal_group(process.pid, 0):
                    return
                time.sleep(0.05)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignores interrupts in the block. Only in the main thread, because other threads cannot set handlers."""
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
    """Signals a process group, and returns whether it still has a member."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def last_words(log: Path, lines: int = 1) -> str:
    """The last non-empty lines of a log. A line that was drawn several times, such as a progress bar, has its last state."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65_536))
        text = file.read().decode(errors="replace")
    found = [line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return "\n".join([line for line in found if line][-lines:])


class StatusLine:
    """A status line. On a terminal it is redrawn, elsewhere it is printed at long intervals."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._printed = self._began
        if not self._terminal:
            print(f"{label} ...", file=sys.stderr, flush=True)

    def show(self, detail: str) -> None:
        """Shows the label, the seconds so far and `detail`. Without a terminal, at most every 15 seconds."""
        now = time.monotonic()
        line = f"{self._label} ... {now - self._began:.0f} s  {detail}"
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)
        elif now - self._printed >= 15:
            self._printed = now
            print(f"  {line[:160]}", file=sys.stderr, flush=True)

    def end(self, how: str = "done") -> None:
        """Ends the line with the result `how` and the seconds that it took."""
        start_of_line = "\r\x1b[K" if self._terminal else ""
        seconds = time.monotonic() - self._began
        print(f"{start_of_line}{self._label}: {how}, {seconds:.0f} s", file=sys.stderr, flush=True)


def watch(
    process: subprocess.Popen[bytes], label: str, log: Path, until: Callable[[], bool] = lambda: False
) -> int | None:
    """Shows the progress of a process until it ends or a condition holds. Stops the process on an interrupt.

    Args:
        process: a process made by `start`.
        label: name of the step.
        log: file of the process's output, whose last line is shown.
        until: the condition.

    Returns:
        The exit status; None if the condition held first.
    """
    progress = StatusLine(label)
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
    """Runs a command to its end, and shows its progress.

    Args:
        label: name of the step.
        command: program and arguments.
        log: file for its output.
        environment: variables in addition to those of this process.
        allowed: exit statuses that are no failure.

    Returns:
        The exit status.

    Raises:
        SetupError: the exit status is not one of `allowed`; the message holds the end of the log.
    """
    status = watch(start(command, log, environment), label, log)
    assert status is not None
    if status not in allowed:
        raise SetupError(
            f"{label}: failed with exit status {status}. The end of {log}:\n{last_words(log, 15)}"
        )
    return status
