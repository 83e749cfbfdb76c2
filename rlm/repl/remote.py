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
"""Seconds that the host waits for the processes of a REPL to end before it goes on without them. The kernel may need longer
to free large page tables or many processes."""
END_PATIENCE = 10.0
"""Seconds that a worker which has to end may take to leave its checkpoint. Then the host gives the namespace up."""
PONG_PATIENCE = 10.0
"""Seconds that a supervisor may take to answer a ping before it is killed, with the REPLs of others. More than a fork server
is ever busy with one order, and than a process waits for its turn on a busy machine."""
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
    """What the last cell printed to stdout and stderr and was not shown yet."""
    checkpoint: tuple[int, int] | None
    """The name of the checkpoint, and how many cells and extensions the worker had completed when it was made."""


class Remote:
    """A supervisor and its worker, from their start to their end.

    Args:
        received: called with each message of the worker and the supervisor, and its kind of frame. Queries and calls of
            tools, which may be large, come unparsed.
        lost: called once, when the worker has ended, or when the host does not wait for its end any longer.
    """

    def __init__(
        self, received: Callable[[Remote, bytes, Any], None], lost: Callable[[Remote], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._received, self._lost = received, lost
        self._links: Links | None = None
        self._lost_streams: set[str] = set()
        self._failure = ""
        self._give_up: asyncio.TimerHandle | None = None
        self._suspicion: asyncio.Task[None] | None = None
        """Waits for a sign of life of the supervisor."""
        self._left = False
        """The host waits for nothing of this far side any more, but for a sign of life of its supervisor."""
        self.control = FrameStream(
            MAX_FRAME, self._from_supervisor, self._distrust, lambda: self._on_lost("control")
        )
        self.work = FrameStream(MOST_MESSAGE, self._from_worker, self.fail, lambda: self._on_lost("work"))
        self.supply = Supply()
        """The contexts that the worker asks for, piece by piece."""
        self.up: asyncio.Future[None] = self._loop.create_future()
        """Done when the worker has its namespace; cancelled when it will never have one."""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the worker has ended, or the host has left it. There may be a checkpoint."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done when nothing is left."""
        self.end: WorkerEnd | None = None
        self.condemned = False
        """The worker is ending: no cell runs in it any more."""
        self.late = False
        """The host has waited `BOUND` seconds for the worker to end, and does not do so again."""

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
        if self.condemned:
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
        except ValueError:  # it holds an object of a subclass, which goes as JSON has it
            payload = marshal.dumps(decode(encode(message)), 2)
        self._send_work(kind, payload)

    def answer(self, number: int, value: Any) -> None:
        """Sends the worker a plain value that it asked for.

        Args:
            number: of the worker's question.
        """
        self.reply(number, marshal.dumps(value, 2))

    def reply(self, number: int, value: bytes) -> None:
        """As `answer`, with a value that is marshalled already."""
        self._send_work(ToWorker.VALUE, NUMBER.pack(number) + value)

    def _send_work(self, kind: bytes, payload: bytes) -> None:
        if self._links is not None and not self.work.over:
            self._links.work.write(pack(kind, payload))

    # the end

    def condemn(self, patience: float | None = None) -> None:
        """The worker has to end. No cell runs in it any more.

        Args:
            patience: seconds after which the host leaves it. None: `END_PATIENCE`, so that it can leave a checkpoint.
        """
        self.condemned = True
        if self.ended.done():
            return
        if patience is None:
            patience = END_PATIENCE
        if self._give_up is not None:
            patience = min(patience, self._give_up.when() - self._loop.time())
            self._give_up.cancel()
        self._give_up = self._loop.call_later(patience, self.leave)

    def fail(self, reason: str) -> None:
        """Has the supervisor end everything of this REPL, because the REPL cannot go on."""
        self._failure = self._failure or reason
        self.order(ToSupervisor.END)
        self.condemn(BOUND)

    def leave(self) -> None:
        """Has the supervisor end everything of this REPL, and does not wait for that: the kernel frees slow processes in
        its own time. A supervisor that does not answer is killed."""
        if not self.gone.done():
            self.condemned = self._left = True
            self.order(ToSupervisor.END)
            self.work.ignore()
            self._conclude()
            self.ping()

    def ping(self) -> None:
        """Asks the supervisor for a sign of life, and kills it if there is none within `PONG_PATIENCE` seconds."""
        if self._suspicion is not None or self.gone.done():
            return
        if self.control.over:  # the supervisor has ended this REPL, or itself
            self.abort()
        else:
            self.order(ToSupervisor.PING)
            self._answered = self._loop.create_future()
            self._suspicion = self._loop.create_task(self._suspect())

    async def _suspect(self) -> None:
        """Waits for the answer to a ping. A task, not a timer: the end of the event loop cancels it, and the streams close
        before the loop does."""
        try:
            done, _ = await asyncio.wait([self._answered], timeout=PONG_PATIENCE)
        except asyncio.CancelledError:
            self.abort()
            raise
        self._suspicion = None
        if not done:
            self._kill()
        elif self._left:
            self.abort()

    def _pong(self) -> None:
        if self._suspicion is not None and not self._answered.done():
            self._answered.set_result(None)

    def _kill(self) -> None:
        self._failure = self._failure or "the supervisor of the REPL did not answer and was killed"
        if self._links is not None:
            self._links.kill()

    def abort(self) -> None:
        """Closes the streams. The processes at their other ends then end."""
        if self._links is not None:
            self._links.close()

    def _distrust(self, reason: str) -> None:
        """The stream of the supervisor was disturbed, so there is no use in orders."""
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
            self._pong()
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
            self.condemn()
            self.work.release_all()
            self._look()
        elif kind == FromSupervisor.PRINTED:
            self._received(self, kind, [str(stdout), str(stderr)])
        else:
            raise ProtocolError(f"a frame {kind!r}")

    def _on_lost(self, stream: str) -> None:
        self._lost_streams.add(stream)
        self._look()

    def _look(self) -> None:
        """Finds out what is left of the far side."""
        kept = self.end is not None and self.end.checkpoint is not None
        if len(self._lost_streams) == 2 or (kept and "work" in self._lost_streams):
            self._conclude()
        elif self._lost_streams or kept:
            # The other stream ends too, after what is still on its way. If it does not, the code closed the worker's end,
            # or hid a copy of it somewhere.
            self._loop.call_later(_SECOND_STREAM, self._insist)
        if len(self._lost_streams) == 2 and not self.gone.done():
            self._pong()
            self.gone.set_result(None)

    def _conclude(self) -> None:
        if self._give_up is not None:
            self._give_up.cancel()
        if not self.up.done():
            self.up.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
            self._lost(self)

    def _insist(self) -> None:
        if self.ended.done() or self._links is None:
            return
        if self.work.over:
            # The worker may still run, or what it started may take long to end.
            self.condemn()
            self.order(ToSupervisor.KILL, {"why": "the code closed the descriptors of the REPL"})
            # Not at once: the supervisor may end the stream before the ping, and what it sent last would be lost.
            self._loop.call_later(BOUND, self.ping)
        else:
            self._links.work.abort()
