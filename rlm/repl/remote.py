"""The far side of one REPL, as the host sees it: a supervisor and a worker."""

from __future__ import annotations

import asyncio
import marshal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlm.repl.frame_stream import FrameStream
from rlm.repl.links import Links, Resume
from rlm.repl.running_cell import MOST_LINE
from rlm.repl.uploads import Supply
from rlm.repl.worker.process.descriptions import cut
from rlm.repl.worker.protocol.frames import MAX_FRAME, NUMBER, ProtocolError, decode, encode, pack
from rlm.repl.worker.protocol.kinds import FromSupervisor, FromWorker, ToSupervisor, ToWorker
from rlm.repl.worker.protocol.messages import MOST_MESSAGE, load

BOUND = 0.5
"""Seconds that the host waits for the processes of a REPL to end. Then it continues without them. The kernel may need longer
to free large page tables or many processes."""
END_PATIENCE = 10.0
"""Seconds in which an ending worker must leave its checkpoint. After that the namespace is lost."""
PONG_PATIENCE = 10.0
"""Seconds that a supervisor may take to answer a ping. After that it is killed, and all its REPLs end. One order never keeps a
fork server busy for as long, and a process never waits as long for its turn on a busy machine."""
_SECOND_STREAM = 0.5
"""Seconds within which one stream of a REPL ends after the other one."""
_MOST_HEAD = 1 << 19
"""Bytes of the head of a message that is parsed at once. Only queries and calls of tools may have more."""


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended."""

    status: str
    manner: str
    printed: tuple[str, str]
    """Output of the last cell on stdout and on stderr that was not shown yet."""
    checkpoint: tuple[int, int] | None
    """The name of the checkpoint, and how many cells and extensions the worker had completed when it was made."""


class Remote:
    """A supervisor and its worker, from their start to their end.

    Args:
        received: called with each message of the worker and the supervisor, and its kind of frame. Queries and calls of
            tools, which may be large, come unparsed.
        lost: called once: when the worker has ended, or when the host stops waiting for that.
    """

    def __init__(
        self, received: Callable[[Remote, bytes, Any], None], lost: Callable[[Remote], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._received, self._lost = received, lost
        self._links: Links | None = None
        self._lost_streams: set[str] = set()
        self._failure = ""
        self._leave_timer: asyncio.TimerHandle | None = None
        self._ping_task: asyncio.Task[None] | None = None
        """Waits for the supervisor's answer to a ping."""
        self._left = False
        """Whether the host has left this far side: it waits for the answer to a ping alone."""
        self.control = FrameStream(
            MAX_FRAME, self._from_supervisor, self._on_disturbed, lambda: self._on_lost("control")
        )
        self.work = FrameStream(MOST_MESSAGE, self._from_worker, self.fail, lambda: self._on_lost("work"))
        self.supply = Supply()
        """The contexts that the worker asks for, piece by piece."""
        self.up: asyncio.Future[None] = self._loop.create_future()
        """Done when the worker has its namespace; cancelled when it will never have one."""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the worker has ended, or the host has left it. A checkpoint may remain."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when both streams have ended."""
        self.end: WorkerEnd | None = None
        self.ending = False
        """Whether the worker is ending. No more cells run in it."""
        self.late = False
        """Whether the host has waited `BOUND` seconds for the worker to end. It does not wait again."""

    @property
    def why(self) -> str:
        """Why the worker ended."""
        manner = self.end.manner if self.end is not None else ""
        return self._failure or manner or "the processes of the REPL were ended from outside"

    @property
    def resume(self) -> Resume | None:
        """See `Links.resume`."""
        return self._links.resume if self._links is not None else None

    def attach(self, links: Links) -> None:
        """Takes the streams."""
        self._links = links
        self.control.attach(links.control)
        self.work.attach(links.work)
        if self.ending:
            self.abort()

    # orders

    def order(self, kind: bytes, message: Any = None) -> None:
        """Sends the supervisor a frame."""
        if self._links is not None and not self.control.over:
            self._links.control.write(pack(kind, b"" if message is None else encode(message)))

    def tell(self, kind: bytes, message: Any) -> None:
        """Sends the worker a frame with a message."""
        try:
            payload = marshal.dumps(message, 2)
        except ValueError:  # the message holds an object of a subclass, which JSON turns into a plain value
            payload = marshal.dumps(decode(encode(message)), 2)
        self._send_work(kind, payload)

    def answer(self, number: int, value: Any) -> None:
        """Sends the worker a plain value that it asked for.

        Args:
            number: the number of the worker's call.
        """
        self.reply(number, marshal.dumps(value, 2))

    def reply(self, number: int, value: bytes) -> None:
        """Does what `answer` does, with a value that is marshalled already."""
        self._send_work(ToWorker.VALUE, NUMBER.pack(number) + value)

    def _send_work(self, kind: bytes, payload: bytes) -> None:
        if self._links is not None and not self.work.over:
            self._links.work.write(pack(kind, payload))

    # the end

    def expect_end(self, patience: float | None = None) -> None:
        """Called when the worker must end. No more cells run in it.

        Args:
            patience: seconds after which the host leaves the worker. None: `END_PATIENCE`, enough time for a checkpoint.
        """
        self.ending = True
        if self.ended.done():
            return
        if patience is None:
            patience = END_PATIENCE
        if self._leave_timer is not None:
            patience = min(patience, self._leave_timer.when() - self._loop.time())
            self._leave_timer.cancel()
        self._leave_timer = self._loop.call_later(patience, self.leave)

    def expect_no_end(self) -> None:
        """The worker does not have to end after all: the supervisor was late, and has answered."""
        if self._leave_timer is not None and self.end is None and not self._failure and not self.ended.done():
            self.ending = self.late = False
            self._leave_timer.cancel()
            self._leave_timer = None

    def fail(self, reason: str) -> None:
        """Orders the supervisor to end this REPL, which has failed."""
        self._failure = self._failure or reason
        self.order(ToSupervisor.END)
        self.expect_end(BOUND)

    def leave(self) -> None:
        """Orders the supervisor to end this REPL, and does not wait for the end: the kernel may free a slow process later. A
        supervisor that does not answer is killed."""
        if not self.gone.done():
            self.ending = self._left = True
            self.order(ToSupervisor.END)
            self.work.ignore()
            self._mark_ended()
            self.ping()

    def ping(self) -> None:
        """Sends the supervisor a ping, and kills the supervisor if it does not answer within `PONG_PATIENCE` seconds."""
        if self._ping_task is not None or self.gone.done():
            return
        if self.control.over:  # the supervisor has ended this REPL, or itself
            self.abort()
        else:
            self.order(ToSupervisor.PING)
            self._answered = self._loop.create_future()
            self._ping_task = self._loop.create_task(self._await_pong())

    async def _await_pong(self) -> None:
        """Waits for the answer to a ping. A task, not a timer: the end of the event loop cancels it, and the streams close
        before the loop does."""
        try:
            done, _ = await asyncio.wait([self._answered], timeout=PONG_PATIENCE)
        except asyncio.CancelledError:
            self.abort()
            raise
        self._ping_task = None
        if not done:
            self._kill_supervisor()
        elif self._left:
            self.abort()

    def _on_pong(self) -> None:
        if self._ping_task is not None and not self._answered.done():
            self._answered.set_result(None)

    def _kill_supervisor(self) -> None:
        self._failure = self._failure or "the supervisor of the REPL did not answer and was killed"
        if self._links is not None:
            self._links.kill()

    def abort(self) -> None:
        """Closes the streams. The processes at their other ends then end."""
        if self._links is not None:
            self._links.close()

    def _on_disturbed(self, reason: str) -> None:
        """Called when the supervisor's stream was disturbed: orders do not reach it any more."""
        self.fail(reason)
        self.abort()

    # what arrives

    def _from_worker(self, kind: bytes, payload: bytes) -> None:
        if kind == FromWorker.QUERY or kind == FromWorker.CALL:
            self._received(self, kind, payload)
        elif kind == FromWorker.PIECE:
            message = load(payload, _MOST_HEAD)
            self.answer(message["id"], self.supply.piece(message["context"]))
        elif kind == FromWorker.DONE or kind == FromWorker.EXTENDED:
            self._received(self, kind, load(payload, _MOST_HEAD))
        elif kind == FromWorker.UP:
            if self.up.done():
                raise ProtocolError("the worker is up already")
            self.up.set_result(None)
        elif kind == FromWorker.FAILED:
            self.fail(cut(str(load(payload, _MOST_HEAD)["error"]), MOST_LINE))
        else:
            raise ProtocolError(f"a frame {kind!r}")

    def _from_supervisor(self, kind: bytes, payload: bytes) -> None:
        if kind == FromSupervisor.PONG:
            self._on_pong()
            return
        message = decode(payload)
        stdout, stderr = message["printed"]
        if kind == FromSupervisor.ENDED:
            checkpoint = None
            if message.get("checkpoint") is not None:
                name, done = message["checkpoint"]
                checkpoint = int(name), int(done)
            self.end = WorkerEnd(
                str(message["status"]), str(message["manner"]), (str(stdout), str(stderr)), checkpoint
            )
            self.expect_end()
            self.work.release_all()
            self._check_streams()
        elif kind == FromSupervisor.PRINTED:
            self._received(self, kind, [str(stdout), str(stderr)])
        else:
            raise ProtocolError(f"a frame {kind!r}")

    def _on_lost(self, stream: str) -> None:
        self._lost_streams.add(stream)
        self._check_streams()

    def _check_streams(self) -> None:
        """Finds out from the streams whether the worker and the supervisor have ended."""
        kept = self.end is not None and self.end.checkpoint is not None
        if len(self._lost_streams) == 2 or (kept and "work" in self._lost_streams):
            self._mark_ended()
        elif self._lost_streams or kept:
            # The other stream ends too, after its last bytes. If it does not, the code closed the worker's end, or keeps a
            # copy of it open.
            self._loop.call_later(_SECOND_STREAM, self._end_second_stream)
        if len(self._lost_streams) == 2 and not self.gone.done():
            self._on_pong()
            self.gone.set_result(None)

    def _mark_ended(self) -> None:
        if self._leave_timer is not None:
            self._leave_timer.cancel()
        if not self.up.done():
            self.up.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
            self._lost(self)

    def _end_second_stream(self) -> None:
        if self.ended.done() or self._links is None:
            return
        if self.work.over:
            # The worker may still run, or a process that it started may take long to end.
            self.expect_end()
            self.order(ToSupervisor.KILL, {"why": "the code closed the descriptors of the REPL"})
            # Not at once: if the supervisor ended the stream before the ping came, its last frame would be lost.
            self._loop.call_later(BOUND, self.ping)
        else:
            self._links.work.abort()
