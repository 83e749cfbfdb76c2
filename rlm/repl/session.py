"""The host's side of a REPL, the same for every place that a worker can run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from rlm.context import Context
from rlm.errors import REPLError
from rlm.repl.calls import Calls
from rlm.repl.checkpoint import Kept
from rlm.repl.interface import AnswerState, CellResult, CellStatus, QueryHandler, SessionSpec
from rlm.repl.remote import Place, Remote
from rlm.repl.running_cell import MOST_LINE, CellEnding, RunningCell
from rlm.repl.tools import Toolbox
from rlm.repl.uploads import MOST_FILES, Supply
from rlm.repl.worker.process.descriptions import cut
from rlm.repl.worker.process.output import joined
from rlm.repl.worker.protocol.kinds import FromWorker, ToSupervisor, ToWorker
from rlm.types import Message

_SLACK = 10.0
"""Seconds after which the host ends a supervisor that did not end a cell by itself."""
_AS_IT_WAS = "the namespace is as it was"
_FRESH = "A fresh one has the contexts again."
_LOST = "the namespace is lost and a fresh one has the contexts again"


class Session:
    """A REPL somewhere. Belongs to the event loop that opened it."""

    def __init__(self, place: Place, spec: SessionSpec, on_query: QueryHandler) -> None:
        self._place = place
        self._spec = spec
        self._settings = spec.settings
        self._tools = Toolbox.of(spec.tools)
        self._calls = Calls(self._tools, on_query, spec.on_tool)
        self._remote: Remote | None = None
        self._kept: Kept | None = None
        """What the last worker left, which has ended."""
        self._done = 0
        """Cells and extensions that the worker is through with."""
        self._grown = 0
        """That number after the last extension."""
        self._cell: RunningCell | None = None
        self._number = 0
        self._supply = Supply()
        self._extension: asyncio.Task[str | None] | None = None
        self._extended: asyncio.Future[str | None] | None = None
        self._answer = AnswerState("", ready=False)
        self._notice = ""
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, place: Place, spec: SessionSpec, on_query: QueryHandler) -> Self:
        """Starts a REPL.

        Raises:
            ConfigError: the specification does not fit.
            REPLError: it could not be started.
        """
        session = cls(place, spec, on_query)
        await session._launch()
        return session

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """See `REPL.execute`. A second call waits for the first."""
        await self._idle()
        self._number += 1
        cell = self._cell = RunningCell(self._number, self._time_limit(timeout))
        try:
            if self._remote is None:
                await self._launch()
        except BaseException:
            self._cell = None
            cell.result.cancel()
            raise
        return await self._run(code, cell)

    async def _idle(self) -> None:
        """Waits until nothing goes on in the REPL."""
        while (busy := self._busy()) is not None:
            await asyncio.wait([busy])
        if self._closing is not None:
            raise REPLError("the REPL is closed")

    def _busy(self) -> asyncio.Future[Any] | None:
        """What the next cell has to wait for: the one that runs, contexts on their way, or the end of processes that are
        ending, which would take a cell with them that is none of their business."""
        if self._cell is not None:
            return self._cell.result
        if self._extension is not None:
            return self._extension
        return self._remote.ended if self._remote is not None and self._remote.condemned else None

    def _time_limit(self, timeout: float | None) -> float | None:
        limits = [limit for limit in (timeout, self._settings.cell_timeout) if limit is not None]
        return max(0.0, min(limits)) if limits else None

    async def _run(self, code: str, cell: RunningCell) -> CellResult:
        remote = self._remote
        assert remote is not None
        cell.started = time.monotonic()
        remote.tell(ToWorker.RUN, {"id": cell.number, "code": code})
        timer = None
        if cell.timeout is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(cell.timeout, self._interrupt, remote, cell, "")
        try:
            return await cell.result
        except asyncio.CancelledError:
            if self._cell is cell:
                await self._stop(remote, cell)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _stop(self, remote: Remote, cell: RunningCell) -> None:
        """Ends the running cell for a caller that was cancelled."""
        cell.result = asyncio.get_running_loop().create_future()
        self._interrupt(remote, cell, "the caller was cancelled")
        try:
            done, _ = await asyncio.wait([cell.result], timeout=self._stop_grace + _SLACK)
        except asyncio.CancelledError:
            done = set()  # the caller is in a hurry
        if not done:
            self._kill(remote, "an abandoned cell did not stop in time and was killed")

    def _kill(self, remote: Remote, why: str) -> None:
        remote.fail(why)
        asyncio.get_running_loop().call_later(_SLACK, self._give_up, remote)

    def _give_up(self, remote: Remote) -> None:
        """Ends processes that did not end when they were asked to."""
        if not remote.gone.done():
            self._place.kill()
            remote.abort()

    def interrupt(self, reason: str) -> None:
        """See `REPL.interrupt`."""
        if self._cell is not None and self._remote is not None:
            self._interrupt(self._remote, self._cell, reason)

    def _interrupt(self, remote: Remote, cell: RunningCell, reason: str) -> None:
        """Interrupts a cell, unless that has been done.

        Args:
            reason: why; empty for its time limit.
        """
        if self._cell is not cell or cell.interrupted is not None or cell.ending is not None:
            return
        cell.interrupted = reason
        cell.seconds = time.monotonic() - cell.started
        self._calls.cancel()
        remote.work.release_all()  # it gets no replies any more, and the end of its cell is to be heard of
        remote.tell(ToWorker.VOID, {"id": cell.number})
        grace = self._stop_grace if reason else self._settings.interrupt_grace
        remote.order(ToSupervisor.INTERRUPT, {"grace": grace})
        loop = asyncio.get_running_loop()
        loop.call_later(grace + _SLACK, self._insist, remote, cell)

    @property
    def _stop_grace(self) -> float:
        return self._settings.grace_of_stop

    def _insist(self, remote: Remote, cell: RunningCell) -> None:
        """Ends what did not end a cell by itself."""
        if self._cell is cell:
            self._kill(remote, "a cell that was interrupted did not stop in time and was killed")

    async def close(self) -> None:
        """See `REPL.close`."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._calls.cancel()
        await self._let_go(self._remote)
        if self._kept is not None:
            await self._let_go(self._kept.remote)
        if self._extension is not None:
            await asyncio.wait([self._extension])
        await self._calls.end()
        self._spec = replace(self._spec, contexts=())  # a REPL that is kept does not keep its contexts

    async def _let_go(self, remote: Remote | None) -> None:
        """Ends processes, and sees that nothing is left of them."""
        if remote is not None:
            remote.order(ToSupervisor.END)
            await asyncio.wait([remote.gone], timeout=_SLACK)
            self._give_up(remote)
            await asyncio.wait([remote.gone], timeout=_SLACK)

    # further contexts

    async def extend(
        self,
        contexts: Sequence[Context] = (),
        history: Sequence[Sequence[Message]] | None = None,
        *,
        fresh_answer: bool = False,
    ) -> None:
        """See `REPL.extend`. Waits for the cell that runs."""
        await self._idle()
        before = self._spec, self._answer
        self._spec = replace(
            self._spec,
            contexts=[*self._spec.contexts, *contexts],
            history=self._spec.history if history is None else list(history),
        )
        if fresh_answer:
            self._answer = AnswerState("", ready=False)
        if self._remote is None and self._kept is None:
            return  # the worker that the next cell gets will have it
        task = self._bring(before, history is not None, fresh_answer)
        self._extension = asyncio.get_running_loop().create_task(task)
        error = await asyncio.shield(self._extension)
        if error is not None:
            raise REPLError(error)

    async def _bring(
        self, before: tuple[SessionSpec, AnswerState], history: bool, fresh_answer: bool
    ) -> str | None:
        """Has the worker take what is new.

        Args:
            before: what there was, for the case that it cannot.

        Returns:
            Why it cannot. That it ended on the way is no reason: the next one will have it all.
        """
        first = len(before[0].contexts)
        self._supply = Supply(self._spec.contexts[first:], first)
        self._extended = asyncio.get_running_loop().create_future()
        error, taken = None, False
        try:
            remote = self._remote or await self._resume()
            if remote is None:
                taken = True
                return None
            async with asyncio.timeout(_patience(await self._supply.measure())):
                message = {"contexts": self._supply.announce(), "fresh_answer": fresh_answer, "history": None}
                if history:
                    message["history"] = self._history()
                remote.tell(ToWorker.EXTEND, message)
                error = await self._extended
                taken = error is None
        except TimeoutError:
            taken = True
            if self._remote is not None:
                self._kill(self._remote, "the REPL did not take its new contexts in time and was killed")
        finally:
            if not taken:
                self._spec, self._answer = before
            self._supply = Supply()
            self._extension = self._extended = None
        return error

    # the start

    async def _resume(self) -> Remote | None:
        """Processes that go on where the last ones were before they ended; None if that cannot be."""
        if self._kept is None:
            return None
        kept, self._kept = self._kept, None
        try:
            self._remote = await kept.resume(lambda: Remote(self._received, self._lost))
        except BaseException as error:
            self._notice = f"note: the namespace could not be kept: {error}. {_FRESH}\n"
            await self._let_go(kept.remote)
            if not isinstance(error, REPLError):
                raise
        return self._remote

    async def _launch(self) -> None:
        if await self._resume() is not None:
            return
        self._done = self._grown = 0
        for attempt in (1, 2):
            remote = await self._connect()
            if not remote.up.cancelled():
                self._remote = remote
                return
            if remote.condemned or attempt == 2:
                details = remote.end.printed[1] if remote.end is not None else ""
                raise REPLError(f"{remote.why}, before it could run anything\n{details}".strip())
            # What it was to be forked from may just have ended; the next attempt will see that.

    async def _connect(self) -> Remote:
        """Processes that are up, or have ended."""
        supply = self._supply = Supply(self._spec.contexts, values=self._tools.values)
        spec = replace(self._spec, contexts=supply.contexts[:MOST_FILES])
        remote = Remote(self._received, self._lost)
        try:
            async with asyncio.timeout(_patience(await supply.measure())):
                remote.attach(await self._place.connect(remote.control, remote.work, spec))
                remote.tell(ToWorker.OPEN, self._opening(remote))
                await asyncio.wait([remote.up])
        except TimeoutError as error:
            self._give_up(remote)
            raise REPLError("the REPL did not start in time") from error
        except BaseException:
            remote.abort()
            raise
        finally:
            self._supply = Supply()
        return remote

    def _opening(self, remote: Remote) -> dict[str, Any]:
        settings = self._settings
        return {
            "contexts": self._supply.announce(),
            "history": self._history(),
            "tools": self._tools.functions,
            "limits": settings.all_limits,
            "checkpoint_bytes": settings.checkpoint_bytes if remote.resume is not None else 0,
            "checkpoint_after": settings.checkpoint_after,
            "seed": settings.seed,
            "answer": [self._answer.content, self._answer.ready],
        }

    def _history(self) -> list[list[Message]]:
        return [list(messages) for messages in self._spec.history]

    # what comes from the worker and its supervisor

    def _received(self, remote: Remote, kind: bytes, message: Any) -> None:
        if kind == FromWorker.QUERY or kind == FromWorker.CALL:
            if self._cell is not None and self._cell.interrupted is not None:
                return  # nobody waits for a reply
            begin = self._calls.begin_query if kind == FromWorker.QUERY else self._calls.begin_tool
            begin(remote, message)
        elif kind == FromWorker.PIECE:
            remote.answer(message["id"], self._supply.piece(message["context"]))
        elif kind == FromWorker.EXTENDED:
            self._end_extension(message["error"])
        elif kind == FromWorker.DONE:
            self._end_cell(message)
        elif self._cell is not None and self._cell.ending is not None:
            self._finish(self._cell, self._cell.ending, message)

    def _end_cell(self, message: Any) -> None:
        """The cell has run. If the supervisor has some of its output, or is about to interrupt it once more, that
        comes first."""
        cell, remote = self._cell, self._remote
        if cell is None or remote is None or message["id"] != cell.number or cell.ending is not None:
            raise ValueError("the end of a cell that does not run")
        ending = CellEnding.of(message)
        self._done += 1
        if None not in ending.printed and cell.interrupted is None:
            self._finish(cell, ending, ["", ""])
            return
        cell.ending = ending
        lines = [
            line if text is None else "" for text, line in zip(ending.printed, ending.lines, strict=True)
        ]
        remote.order(ToSupervisor.TAKE, {"lines": lines})

    def _end_extension(self, error: Any) -> None:
        if self._extended is None or self._extended.done():
            raise ValueError("the end of an extension that does not happen")
        self._done += 1
        self._grown = self._done
        self._extended.set_result(None if error is None else cut(str(error), MOST_LINE))

    def _finish(self, cell: RunningCell, ending: CellEnding, collected: list[str]) -> None:
        """Makes the result of a cell that has run."""
        limit = self._settings.max_output_chars
        stdout, stderr = (
            collected[number] if text is None else joined(limit, text, ending.lines[number])
            for number, text in enumerate(ending.printed)
        )
        status, error = ending.status, ending.error
        if cell.interrupted is not None:
            status, error = "interrupted", cell.interruption()
        self._answer = ending.answer
        self._conclude(cell, status, stdout, stderr, error, ending.answer, ending.locals)

    def _lost(self, remote: Remote) -> None:
        """The processes are gone."""
        self._calls.cancel()
        if remote is not self._remote:
            return
        self._remote = None
        kept = self._keep(remote)
        if self._extended is not None and not self._extended.done():
            self._extended.set_result(None)
        cell, why = self._cell, remote.why
        status: CellStatus = "died"
        stdout, stderr = remote.end.printed if remote.end is not None else ("", "")
        if self._closing is not None:
            status, why = "killed", "the REPL was closed"
        elif cell is not None and remote.end is not None and remote.end.status == "killed":
            status, why = "killed", cell.kill()
        if cell is None:
            self._notice = f"note: between the cells {why}; {kept or _LOST}\n"
            return
        if self._closing is None:
            why += f"; {kept or _LOST}"
        stderr = joined(self._settings.max_output_chars, stderr, why + "\n")
        self._conclude(cell, status, stdout, stderr, why, replace(self._answer, note=None), {})

    def _keep(self, remote: Remote) -> str:
        """Keeps what processes that have ended left of the state of the REPL. Returns what the model is told of that, if there
        is something."""
        checkpoint = remote.end.checkpoint if remote.end is not None else None
        if checkpoint is None:
            return ""
        name, done = checkpoint
        if not self._grown <= done <= self._done or self._extended is not None or self._closing is not None:
            remote.order(ToSupervisor.END)
            return ""
        self._kept = Kept(remote, name)
        behind, self._done = self._done - done, done
        if not behind:
            return _AS_IT_WAS + (" before this cell" if self._cell is not None else "")
        return f"{_AS_IT_WAS} before the last {behind + (self._cell is not None)} cells"

    def _conclude(
        self,
        cell: RunningCell,
        status: CellStatus,
        stdout: str,
        stderr: str,
        error: str | None,
        answer: AnswerState,
        names: dict[str, str],
    ) -> None:
        self._cell = None
        seconds = time.monotonic() - cell.started
        notice, self._notice = self._notice, ""
        if not cell.result.done():
            cell.result.set_result(CellResult(status, stdout, notice + stderr, error, answer, names, seconds))


def _patience(size: int) -> float:
    """Seconds that a worker has to take contexts of that many bytes."""
    return 30.0 + size / 10e6
