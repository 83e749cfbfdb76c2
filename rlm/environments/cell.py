"""A cell, as the host follows it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from rlm.environments.base import AnswerState, CellResult, CellStatus

_STATUSES: tuple[CellStatus, ...] = ("ok", "error", "exit")
"""How a worker may say that a cell ended."""


class Cell:
    """The cell that runs."""

    def __init__(self, number: int, timeout: float | None) -> None:
        self.number = number
        self.timeout = timeout
        self.result: asyncio.Future[CellResult] = asyncio.get_running_loop().create_future()
        self.started = time.monotonic()
        self.interrupted: str | None = None
        """Why it was interrupted; empty for its time limit."""
        self.seconds = 0.0
        """When that was, from its start."""
        self.ending: Ending | None = None
        """What the worker said of its end, while the supervisor is asked for the rest."""

    def interruption(self) -> str:
        """Says that it was interrupted, when and why."""
        if self.interrupted:
            return f"interrupted after {self.seconds:.1f} s: {self.interrupted}"
        return f"interrupted after {self.timeout:g} s, the time limit of a cell"

    def kill(self) -> str:
        """Says that it was killed, when and why."""
        seconds = time.monotonic() - self.started
        why = self.interrupted or f"its time limit is {self.timeout:g} s"
        return f"killed after {seconds:.1f} s: the cell did not stop when it was interrupted ({why})"


@dataclass(frozen=True, slots=True)
class Ending:
    """What a worker says of the end of a cell. Everything in it may be the code's invention, so it becomes nothing but
    text."""

    status: CellStatus
    error: str | None
    printed: list[str | None]
    """Stdout and stderr; None if the supervisor has it."""
    lines: list[str]
    """What stands after it: the value of a last expression, a traceback."""
    answer: AnswerState
    locals: dict[str, str]

    @classmethod
    def of(cls, message: Any) -> Ending:
        """
        Raises:
            Exception: of any kind: this is no such message.
        """
        status = message["status"]
        if status not in _STATUSES:
            raise ValueError(f"unknown status {status!r}")
        error = message["error"]
        content, ready, note = message["answer"]
        stdout, stderr = message["printed"]
        return cls(
            status=status,
            error=None if error is None else str(error),
            printed=[None if text is None else str(text) for text in (stdout, stderr)],
            lines=[str(message["value"]), str(message["traceback"])],
            answer=AnswerState(str(content), ready is True, None if note is None else str(note)),
            locals={str(name): str(text) for name, text in message["locals"].items()},
        )
