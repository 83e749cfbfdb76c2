"""The host's record of the running cell."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from rlm.repl.interface import AnswerState, CellResult, CellStatus
from rlm.repl.worker.process.descriptions import bounded, cut
from rlm.repl.worker.process.output import joined

_STATUSES: tuple[CellStatus, ...] = ("ok", "error", "exit")
"""The statuses that a worker may report."""

MOST_LINE = 500
"""Characters of a line from a worker, which goes to the log and into the next prompt. `one_line_error` makes shorter ones."""
_MOST_OUTPUT = 2 << 20
"""Characters of a value, and of a traceback. A worker sends fewer."""
_MOST_NAMES = 301
"""Names in the result of a cell. A worker sends no more."""
_MOST_NAME, _MOST_DESCRIPTION = 100, 200


class RunningCell:
    """The record of the running cell.

    Args:
        timeout: its time limit in seconds; None: no limit.
        max_output: characters of stdout, and of stderr.
    """

    def __init__(self, number: int, timeout: float | None, max_output: int) -> None:
        self.number = number
        self.timeout = timeout
        self._max_output = max_output
        self.result: asyncio.Future[CellResult] = asyncio.get_running_loop().create_future()
        self.started = time.monotonic()
        self.interrupted: str | None = None
        """Why the cell was interrupted: the caller's reason; empty for the time limit; None if it was not interrupted."""
        self.pending_stop: str | None = None
        """The caller's reason, if it stopped the cell before the cell had a worker."""
        self.stopped = False
        """Whether the caller stopped the cell."""
        self.seconds = 0.0
        """Seconds from the start of the cell to the interrupt."""
        self.ending: CellEnding | None = None
        """The worker's report, while the host waits for the supervisor's part of the output."""

    def finish(self, ending: CellEnding, collected: list[str], notice: str) -> None:
        """Sets the result of a cell that has run.

        Args:
            collected: the supervisor's part of stdout and of stderr.
            notice: the first line of stderr.
        """
        stdout, stderr = (
            collected[number] if text is None else joined(self._max_output, text, ending.lines[number])
            for number, text in enumerate(ending.printed)
        )
        status, error = ending.status, ending.error
        if self.interrupted is not None:
            status, error = "interrupted", self.interruption()
        self._conclude(status, stdout, notice + stderr, error, ending.answer, ending.locals)

    def lose(
        self, status: CellStatus, why: str, printed: tuple[str, str], answer: AnswerState, notice: str
    ) -> None:
        """Sets the result of a cell whose worker did not report the end of the cell.

        Args:
            why: the error line.
            printed: the supervisor's part of stdout and of stderr.
            answer: the last known answer.
            notice: the first line of stderr.
        """
        stdout, stderr = printed
        stderr = joined(self._max_output, stderr, why + "\n")
        self._conclude(status, stdout, notice + stderr, why, replace(answer, note=None), {})

    def _conclude(
        self,
        status: CellStatus,
        stdout: str,
        stderr: str,
        error: str | None,
        answer: AnswerState,
        names: dict[str, str],
    ) -> None:
        if not self.result.done():
            seconds = time.monotonic() - self.started
            self.result.set_result(CellResult(status, stdout, stderr, error, answer, names, seconds))

    def interruption(self) -> str:
        """A line that says that the cell was interrupted, when and why."""
        if self.interrupted:
            return f"interrupted after {self.seconds:.1f} s: {self.interrupted}"
        return f"interrupted after {self.timeout:g} s, the time limit of a cell"

    def kill(self) -> str:
        """A line that says that the cell was killed, when and why."""
        seconds = time.monotonic() - self.started
        why = self.interrupted or f"its time limit is {self.timeout:g} s"
        return f"killed after {seconds:.1f} s: the cell did not stop when it was interrupted ({why})"


@dataclass(frozen=True, slots=True)
class CellEnding:
    """A worker's report of the end of a cell. The code may have forged it, so every part becomes text, cut to the length that a
    worker may send."""

    status: CellStatus
    error: str | None
    printed: list[str | None]
    """Stdout and stderr. None: the supervisor has that stream."""
    lines: list[str]
    """The text after each stream: the value of a last expression, and a traceback."""
    answer: AnswerState
    locals: dict[str, str]

    @classmethod
    def of(cls, message: Any) -> CellEnding:
        """Reads the message of a worker.

        Raises:
            Exception: the message is malformed. The exception can be of any kind.
        """
        status = message["status"]
        if status not in _STATUSES:
            raise ValueError(f"unknown status {status!r}")
        error = message["error"]
        content, ready, note = message["answer"]
        stdout, stderr = message["printed"]
        return cls(
            status=status,
            error=None if error is None else cut(str(error), MOST_LINE),
            printed=[None if text is None else str(text) for text in (stdout, stderr)],
            lines=[bounded(str(message[part]), _MOST_OUTPUT) for part in ("value", "traceback")],
            answer=AnswerState(
                str(content), ready is True, None if note is None else cut(str(note), MOST_LINE)
            ),
            locals={
                cut(str(name), _MOST_NAME): cut(str(text), _MOST_DESCRIPTION)
                for name, text in islice(message["locals"].items(), _MOST_NAMES)
            },
        )
