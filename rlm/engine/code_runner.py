"""Runs the code of a reply, block by block, in the REPL of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rlm.engine.emitter import Emitter
from rlm.engine.final_answer import FinalAnswer
from rlm.engine.ledger import Ledger
from rlm.errors import ErrorThresholdExceededError, RLMError
from rlm.repl.interface import REPL, CellResult
from rlm.types import RunStats

_LAST_CELL_SECONDS = 5.0
"""Seconds for a cell of the reply that used up a limit: enough to set an answer."""


class CodeRunner:
    """Runs the code of one run.

    Args:
        repl: runs the cells.
        answer: gets the variable `answer` after each cell.
        ledger: interrupts a cell when a limit is reached.
        stats: its counts of cells are kept here.
        emitter: tells the listeners of each cell.
        max_errors: cells in a row that may fail; None: any number.
    """

    def __init__(
        self,
        repl: REPL,
        answer: FinalAnswer,
        ledger: Ledger,
        stats: RunStats,
        emitter: Emitter,
        max_errors: int | None,
    ) -> None:
        self._repl = repl
        self._answer = answer
        self._ledger = ledger
        self._stats = stats
        self._emitter = emitter
        self._max_errors = max_errors
        self._errors_in_a_row = 0
        self._last_error = ""

    async def run(self, turn: int, blocks: Sequence[str]) -> list[CellResult]:
        """Runs the blocks in order, until one sets the answer ready, the REPL stops one, or a limit is reached.

        Returns:
            The results of the blocks that ran.
        """
        cells: list[CellResult] = []
        self._answer.problem = None
        for number, code in enumerate(blocks, 1):
            self._emitter.emit("cell_start", turn=turn, number=number, code=code)
            cell = await self._execute(code)
            cells.append(cell)
            self._count(cell)
            if self._emitter.active:
                self._emit(turn, number, code, cell)
            stopped = cell.status in ("interrupted", "killed", "died")
            if self._answer.update(cell.answer) or stopped or self._ledger.error:
                break
        return cells

    def check_errors(self) -> None:
        """Checks the count of failed cells.

        Raises:
            ErrorThresholdExceededError: the last `max_errors` cells failed.
        """
        if self._max_errors is not None and self._errors_in_a_row >= self._max_errors:
            raise ErrorThresholdExceededError(self._errors_in_a_row, self._max_errors, self._last_error)

    async def _execute(self, code: str) -> CellResult:
        if self._ledger.error is not None:
            return await self._repl.execute(code, timeout=_LAST_CELL_SECONDS)

        def stop(limit: RLMError) -> None:
            self._repl.interrupt(str(limit))

        with self._ledger.interruptible(stop):
            return await self._repl.execute(code)

    def _count(self, cell: CellResult) -> None:
        failed = cell.status != "ok"
        self._stats.cells += 1
        self._stats.cell_errors += failed
        self._stats.repl_seconds += cell.seconds
        self._errors_in_a_row = self._errors_in_a_row + 1 if failed else 0
        self._last_error = cell.error or ""

    def _emit(self, turn: int, number: int, code: str, cell: CellResult) -> None:
        answer = cell.answer
        self._emitter.emit(
            "cell",
            turn=turn,
            number=number,
            code=code,
            status=cell.status,
            stdout=cell.stdout,
            stderr=cell.stderr,
            error=cell.error,
            locals=cell.locals,
            answer={"content": answer.content, "ready": answer.ready, "note": answer.note},
            seconds=cell.seconds,
        )
