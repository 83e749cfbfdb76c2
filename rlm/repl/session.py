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
from rlm.repl.checkpoint import Progress
from rlm.repl.interface import AnswerState, CellResult, CellStatus, QueryHandler, SessionSpec
from rlm.repl.launcher import Launcher, patience
from rlm.repl.links import Place
from rlm.repl.remote import BOUND, END_PATIENCE, Remote
from rlm.repl.running_cell import MOST_LINE, CellEnding, RunningCell
from rlm.repl.tools import Toolbox
from rlm.repl.uploads import Supply
from rlm.repl.worker.process.descriptions import cut
from rlm.repl.worker.protocol.kinds import FromWorker, ToSupervisor, ToWorker
from rlm.types import Message

_FRESH = "A fresh one has the contexts again."
_LOST = "the namespace is lost and a fresh one has the contexts again"
_STILL_ENDING = "its processes are still ending"


class Session:
    """A REPL somewhere. Belongs to the event loop that opened it.

    When a cell must stop, the caller waits for the grace period, and `BOUND` seconds for the processes to end. After a cell
    that reached its own time limit the caller waits `END_PATIENCE` seconds more, so that the checkpoint can replace the
    worker. Then the host continues without the processes (`Remote.leave`).
    """

    def __init__(self, place: Place, spec: SessionSpec, on_query: QueryHandler) -> None:
        self._spec = spec
        self._settings = spec.settings
        tools = Toolbox.of(spec.tools)
        self._calls = Calls(tools, on_query, spec.on_tool)
        self._launcher = Launcher(place, tools, self._make_remote)
        self._remote: Remote | None = None
        self._progress = Progress()
        self._cell: RunningCell | None = None
        self._number = 0
        self._late_output: asyncio.Future[None] | None = None
        """Done when the supervisor has answered for a cell that its caller has left, or the worker is lost."""
        self._extension: asyncio.Task[str | None] | None = None
        self._extended: asyncio.Future[str | None] | None = None
        """The worker's answer to the extension: the reason why it failed, or None."""
        self._answer = AnswerState("", ready=False)
        self._notice = ""
        """A line that the next cell shows before its stderr."""
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, place: Place, spec: SessionSpec, on_query: QueryHandler) -> Self:
        """Starts a REPL.

        Raises:
            REPLError: the REPL could not be started.
        """
        session = cls(place, spec, on_query)
        await session._launch()
        return session

    # cells

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """See `REPL.execute`. A second call waits for the first."""
        await self._idle()
        self._number += 1
        limit = self._time_limit(timeout)
        cell = self._cell = RunningCell(self._number, limit, self._settings.max_output_chars)
        try:
            if self._remote is None:
                await self._launch()
            # `close` was called while the worker started, and found no worker to end.
            if self._closing is not None:
                await _end(self._remote)
                raise REPLError("the REPL is closed")
        except BaseException:
            self._cell = None
            cell.result.cancel()
            raise
        return await self._run(code, cell)

    async def _idle(self) -> None:
        """Waits until the REPL does nothing.

        Raises:
            REPLError: the REPL is closed.
        """
        while (busy := self._next_idle()) is not None:
            await asyncio.wait([busy])
        if self._closing is not None:
            raise REPLError("the REPL is closed")

    def _next_idle(self) -> asyncio.Future[Any] | None:
        """The event that the next cell waits for: the end of the running cell, of an extension, the late output of a cell that
        its caller has left, or the end of a worker that is ending, which would end the next cell too."""
        if self._cell is not None:
            return self._cell.result
        if self._extension is not None:
            return self._extension
        if self._late_output is not None:
            return self._late_output
        return self._remote.ended if self._remote is not None and self._remote.ending else None

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
        if cell.pending_stop is not None:
            self._interrupt(remote, cell, cell.pending_stop)
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
            await asyncio.wait([cell.result])  # `_leave_cell` limits the wait
        except asyncio.CancelledError:  # the caller does not wait for the grace period
            remote.fail("an abandoned cell did not stop in time and was killed")

    def interrupt(self, reason: str) -> None:
        """See `REPL.interrupt`."""
        if self._cell is None:
            return
        if self._remote is None:  # the worker of the cell is being started
            self._cell.pending_stop = reason
        else:
            self._interrupt(self._remote, self._cell, reason)

    def _interrupt(self, remote: Remote, cell: RunningCell, reason: str) -> None:
        """Interrupts a cell. The result names the first reason. A caller that stops a cell after its time limit was reached
        waits no longer than usual.

        Args:
            reason: why the caller stops the cell. Empty: the cell reached its time limit.
        """
        if self._cell is not cell or cell.stopped or (cell.interrupted is not None and not reason):
            return
        loop = asyncio.get_running_loop()
        cell.stopped = bool(reason)
        if cell.ending is not None:  # the cell has run
            if reason:
                loop.call_later(BOUND, self._leave_cell, remote, cell)
            return
        if cell.interrupted is None:
            cell.interrupted = reason
            cell.seconds = time.monotonic() - cell.started
            self._calls.cancel()
            remote.work.release_all()  # a hold waits for replies, which will not come; the end of the cell must be read
            remote.tell(ToWorker.VOID, {"id": cell.number})
        grace = self._settings.grace_of_stop if reason else self._settings.interrupt_grace
        remote.order(ToSupervisor.INTERRUPT, {"grace": grace})
        loop.call_later(grace + BOUND, self._leave_cell if reason else self._on_cell_late, remote, cell)

    def _on_cell_late(self, remote: Remote, cell: RunningCell) -> None:
        """Called when the cell should have ended. Its processes may take long to end, or the supervisor does not answer."""
        if self._cell is cell:
            remote.ping()
            asyncio.get_running_loop().call_later(END_PATIENCE, self._on_checkpoint_late, remote, cell)

    def _on_checkpoint_late(self, remote: Remote, cell: RunningCell) -> None:
        """Called when the checkpoint has not come in time. Continues without it."""
        if self._cell is cell:
            remote.fail("a cell that was interrupted did not stop in time and was killed")

    def _leave_cell(self, remote: Remote, cell: RunningCell) -> None:
        """Called when the caller stops waiting for a cell that it stopped. The next cell waits for the checkpoint, or for the
        supervisor's answer if the cell has run."""
        if self._cell is not cell:
            return
        remote.late = True
        remote.expect_end()
        remote.ping()
        if cell.ending is not None:  # the cell has run, and the supervisor keeps a part of its output
            self._late_output = asyncio.get_running_loop().create_future()
            self._finish(cell, cell.ending, ["", ""])
        else:
            self._lose_cell(cell, "killed", f"{cell.kill()}; {_STILL_ENDING}", ("", ""))

    # the end

    async def close(self) -> None:
        """See `REPL.close`."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._calls.cancel()
        await _end(self._remote)
        if self._progress.kept is not None:
            await _end(self._progress.kept.remote)
        if self._extension is not None:
            await asyncio.wait([self._extension])
        await self._calls.end()
        self._spec = replace(self._spec, contexts=())  # a closed REPL does not keep its contexts in memory

    # further contexts

    async def extend(
        self,
        contexts: Sequence[Context] = (),
        history: Sequence[Sequence[Message]] | None = None,
        *,
        fresh_answer: bool = False,
    ) -> None:
        """See `REPL.extend`. Waits for the running cell."""
        await self._idle()
        before = self._spec, self._answer
        self._spec = replace(
            self._spec,
            contexts=[*self._spec.contexts, *contexts],
            history=self._spec.history if history is None else list(history),
        )
        if fresh_answer:
            self._answer = AnswerState("", ready=False)
        if self._remote is None and self._progress.kept is None:
            return  # the next cell starts a worker with all of it
        task = self._send_extension(before, history is not None, fresh_answer)
        self._extension = asyncio.get_running_loop().create_task(task)
        error = await asyncio.shield(self._extension)
        if error is not None:
            raise REPLError(error)

    async def _send_extension(
        self, before: tuple[SessionSpec, AnswerState], history: bool, fresh_answer: bool
    ) -> str | None:
        """Sends the worker the new contexts and the new history.

        Args:
            before: the last specification and answer, which are restored if the worker cannot take the new ones.

        Returns:
            The reason why the worker cannot take them; None if it has. If the worker ends meanwhile, that is no reason: the
            next worker gets all contexts.
        """
        first = len(before[0].contexts)
        supply = Supply(self._spec.contexts[first:], first)
        self._extended = asyncio.get_running_loop().create_future()
        error, taken = None, False
        remote: Remote | None = None
        try:
            remote = self._remote or await self._resume()
            if remote is None:
                taken = True
                return None
            remote.supply = supply
            async with asyncio.timeout(patience(await supply.measure())):
                message = {"contexts": supply.announce(), "fresh_answer": fresh_answer, "history": None}
                if history:
                    message["history"] = [list(messages) for messages in self._spec.history]
                remote.tell(ToWorker.EXTEND, message)
                error = await self._extended
                taken = error is None
        except TimeoutError:
            taken = True
            if self._remote is not None:
                self._remote.fail("the REPL did not take its new contexts in time and was killed")
        finally:
            if not taken:
                self._spec, self._answer = before
            if remote is not None:
                remote.supply = Supply()
            self._extension = self._extended = None
        return error

    # the start

    def _make_remote(self) -> Remote:
        return Remote(self._on_message, self._on_worker_ended)

    async def _launch(self) -> None:
        """Starts a worker: from the checkpoint, or else with a fresh namespace."""
        if await self._resume() is None:
            self._progress.restart()
            self._remote = await self._launcher.start(self._spec, self._answer)

    async def _resume(self) -> Remote | None:
        """Makes the checkpoint the worker. None: there is no checkpoint, or it cannot be resumed."""
        kept = self._progress.take()
        if kept is None:
            return None
        try:
            self._remote = await kept.resume(self._make_remote)
        except BaseException as error:
            self._notice = f"note: the namespace could not be kept: {error}. {_FRESH}\n"
            await _end(kept.remote)
            if not isinstance(error, REPLError):
                raise
        return self._remote

    # what comes from the worker and its supervisor

    def _on_message(self, remote: Remote, kind: bytes, message: Any) -> None:
        if kind == FromWorker.QUERY or kind == FromWorker.CALL:
            if remote.ending or (self._cell is not None and self._cell.interrupted is not None):
                return  # an ending worker and an interrupted cell wait for no replies
            begin = self._calls.begin_query if kind == FromWorker.QUERY else self._calls.begin_tool
            begin(remote, message)
        elif kind == FromWorker.EXTENDED:
            self._end_extension(message["error"])
        elif kind == FromWorker.DONE:
            self._end_cell(remote, message)
        elif self._cell is not None and self._cell.ending is not None:
            self._finish(self._cell, self._cell.ending, message)
        elif self._late_output is not None:
            remote.expect_no_end()
            self._end_late_output()

    def _end_cell(self, remote: Remote, message: Any) -> None:
        """Called when the cell has run. If the supervisor has a part of its output, or is about to interrupt the cell once
        more, the host waits for the supervisor's answer first."""
        cell = self._cell
        if cell is None and remote.ending:
            return  # the caller has stopped waiting for this cell
        if (
            cell is None
            or remote is not self._remote
            or message["id"] != cell.number
            or cell.ending is not None
        ):
            raise ValueError("the worker reported the end of a cell that does not run")
        ending = CellEnding.of(message)
        self._progress.add()
        if None not in ending.printed and cell.interrupted is None:
            self._finish(cell, ending, ["", ""])
            return
        cell.ending = ending
        lines = [
            line if text is None else "" for text, line in zip(ending.printed, ending.lines, strict=True)
        ]
        remote.order(ToSupervisor.TAKE, {"lines": lines})
        asyncio.get_running_loop().call_later(BOUND, self._on_cell_late, remote, cell)

    def _end_extension(self, error: Any) -> None:
        if self._extended is None or self._extended.done():
            raise ValueError("the worker reported the end of an extension that it was not sent")
        self._progress.add(extension=True)
        self._extended.set_result(None if error is None else cut(str(error), MOST_LINE))

    def _finish(self, cell: RunningCell, ending: CellEnding, collected: list[str]) -> None:
        """Sets the result of a cell that has run.

        Args:
            collected: the supervisor's part of stdout and of stderr.
        """
        self._cell, self._answer = None, ending.answer
        cell.finish(ending, collected, self._take_notice())

    def _on_worker_ended(self, remote: Remote) -> None:
        """Called when the worker has ended, or the host has left it."""
        if remote is not self._remote:
            return
        self._calls.cancel()
        self._remote = None
        self._end_late_output()
        if self._extension is not None or self._closing is not None:
            remote.order(ToSupervisor.END)  # the checkpoint is not needed
            kept = ""
        else:
            kept = self._progress.keep(remote, in_cell=self._cell is not None)
        if self._extended is not None and not self._extended.done():
            self._extended.set_result(None)
        cell, why, end = self._cell, remote.why, remote.end
        if cell is None:
            self._notice = f"note: between the cells {why}; {kept or _LOST}\n"
            return
        status: CellStatus = "died"
        if self._closing is not None:
            status, why = "killed", "the REPL was closed"
        else:
            if end is not None and end.status == "killed":
                status, why = "killed", cell.kill()
            why += f"; {kept or _LOST}"
        self._lose_cell(cell, status, why, end.printed if end is not None else ("", ""))

    def _end_late_output(self) -> None:
        if self._late_output is not None:
            self._late_output.set_result(None)
            self._late_output = None

    def _lose_cell(self, cell: RunningCell, status: CellStatus, why: str, printed: tuple[str, str]) -> None:
        """Sets the result of a cell whose worker did not report the end of the cell."""
        self._cell = None
        cell.lose(status, why, printed, self._answer, self._take_notice())

    def _take_notice(self) -> str:
        notice, self._notice = self._notice, ""
        return notice


async def _end(remote: Remote | None) -> None:
    """Ends a far side, and waits `BOUND` seconds for it, unless the host has already waited that long."""
    if remote is not None:
        remote.order(ToSupervisor.END)
        if not remote.late:
            await asyncio.wait([remote.gone], timeout=BOUND)
        remote.leave()
