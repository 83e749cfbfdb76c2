"""The processes of one REPL, as the host sees them."""

from __future__ import annotations

import asyncio
import marshal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rlm.repl.interface import SessionSpec
from rlm.repl.running_cell import MOST_LINE
from rlm.repl.worker.process.descriptions import cut
from rlm.repl.worker.protocol.frames import MAX_FRAME, NUMBER, Frames, ProtocolError, decode, encode, pack
from rlm.repl.worker.protocol.kinds import FromSupervisor, FromWorker, ToSupervisor, ToWorker
from rlm.repl.worker.protocol.messages import MOST_MESSAGE, load

_PATIENCE = 0.5
"""Seconds within which the two streams of a REPL end, once one did."""
_MOST_HEAD = 1 << 19
"""Bytes of the head of a message that is parsed at once: all but queries and calls of tools, which may have more."""
_TURN, _TURN_BYTES = 32, 1 << 16
"""Frames of a stream that are taken in one turn of the event loop, and the bytes of theirs after which there is none but in the
next, so that a flood does not keep others waiting."""


class Link(Protocol):
    """A stream to a process of a REPL, as asyncio's transports have it."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


Resume = Callable[[asyncio.Protocol, asyncio.Protocol, int], Awaitable["Links"]]
"""Connects to a supervisor and to the checkpoint that is its worker from now on, as `Place.connect` does, given the name of
the checkpoint."""


@dataclass(frozen=True, slots=True)
class Links:
    """The streams to a supervisor and to its worker."""

    control: Link
    work: Link
    resume: Resume | None = None
    """How to connect to a checkpoint of that worker; None where there can be none."""


class Place(Protocol):
    """Starts REPLs somewhere and gives back the streams to each."""

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        """Starts a supervisor and a worker, and connects the stream of the one to `control`, of the other to `work`. A
        place that has but one stream, and no files, puts a `Relay` between.

        Raises:
            REPLError: that failed.
        """
        ...

    def kill(self) -> None:
        """Ends a supervisor that does not answer, with all that it started. Whoever else has a REPL from it will get
        another one."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """How a worker ended."""

    status: str
    manner: str
    printed: tuple[str, str]
    """What was left to show of stdout and stderr."""
    checkpoint: tuple[int, int] | None
    """Its name, and how many cells and extensions it has seen, if there is one."""


class _Stream(asyncio.Protocol):
    """Cuts a stream into frames, as long as nothing holds it.

    Args:
        most: bytes that one may have.
    """

    def __init__(
        self,
        most: int,
        received: Callable[[bytes, bytes], None],
        disturbed: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        self._received, self._disturbed, self._lost = received, disturbed, lost
        self._frames = Frames(most)
        self._loop = asyncio.get_running_loop()
        self._holds: set[str] = set()
        self._link: Link | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self.over = False

    def attach(self, link: Link) -> None:
        """Takes its other half."""
        self._link = link
        if self._holds:
            link.pause_reading()

    def data_received(self, data: bytes) -> None:
        if not self.over:
            self._frames.feed(data)
            self._deliver()

    def _deliver(self) -> None:
        count = size = 0
        try:
            while count < _TURN and size < _TURN_BYTES:
                frame = None if self.over or self._holds else self._frames.next()
                if frame is None:
                    return
                count += 1
                size += len(frame[1])
                self._received(*frame)
        except Exception as error:
            self.disturb(error)
            return
        self.hold("turn")
        self._loop.call_soon(self.release, "turn")

    def hold(self, why: str) -> None:
        """Takes nothing from it until that is released: who sends has to wait."""
        if not self._holds and self._link is not None:
            self._link.pause_reading()
        self._holds.add(why)

    def release(self, why: str) -> None:
        """Ends a hold, if there is one for that reason."""
        if why in self._holds:
            self._holds.remove(why)
            self._go_on()

    def release_all(self) -> None:
        """Ends all holds."""
        if self._holds:
            self._holds.clear()
            self._go_on()

    def _go_on(self) -> None:
        if not self._holds:
            if self._link is not None:
                self._link.resume_reading()
            self._loop.call_soon(self._deliver)

    def pause_writing(self) -> None:
        """The other side does not read what it is told: it shall not be able to ask for more."""
        self._flows.clear()
        self.hold("writing")

    def resume_writing(self) -> None:
        self._flows.set()
        self.release("writing")

    async def flows(self) -> None:
        """Waits until the other side has read what it was told, or will not do so any more."""
        while not self._flows.is_set():
            await self._flows.wait()

    def disturb(self, error: Exception) -> None:
        """Code that got hold of the stream wrote to it. What comes after that cannot be trusted."""
        self.over = True
        self._disturbed(f"the stream of the REPL was disturbed ({type(error).__name__})")

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        self._flows.set()
        self._lost()


class Remote:
    """A supervisor and its worker, from their start to their end.

    Args:
        received: is given what the worker and the supervisor say, by kind of frame. Queries and calls of tools, which may
            be large, come as they are.
        lost: is called when both are gone, or the worker is and the supervisor keeps a checkpoint.
    """

    def __init__(
        self, received: Callable[[Remote, bytes, Any], None], lost: Callable[[Remote], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._received, self._lost = received, lost
        self._links: Links | None = None
        self._lost_streams: set[str] = set()
        self._failure = ""
        self.control = _Stream(
            MAX_FRAME, self._from_supervisor, self._distrust, lambda: self._on_lost("control")
        )
        self.work = _Stream(MOST_MESSAGE, self._from_worker, self.fail, lambda: self._on_lost("work"))
        self.up: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Nobody runs any more; there may be a checkpoint."""
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Nothing is left."""
        self.end: End | None = None
        self.condemned = False
        """It is ending, and not to be used any more."""

    @property
    def why(self) -> str:
        """Why it could not go on."""
        manner = self.end.manner if self.end is not None else ""
        return self._failure or manner or "the processes of the REPL were ended from outside"

    @property
    def resume(self) -> Resume | None:
        """How to go on from a checkpoint of the worker; None where there can be none."""
        return self._links.resume if self._links is not None else None

    def attach(self, links: Links) -> None:
        """Takes the streams."""
        self._links = links
        self.control.attach(links.control)
        self.work.attach(links.work)
        if self.condemned:
            self.abort()

    def order(self, kind: bytes, message: Any = None) -> None:
        """Tells the supervisor something."""
        if self._links is not None and not self.control.over:
            self._links.control.write(pack(kind, b"" if message is None else encode(message)))

    def tell(self, kind: bytes, message: Any) -> None:
        """Tells the worker something."""
        try:
            payload = marshal.dumps(message, 2)
        except ValueError:  # there is an object of a subclass in it, which goes as JSON has it
            payload = marshal.dumps(decode(encode(message)), 2)
        self._say(kind, payload)

    def answer(self, number: int, value: Any) -> None:
        """Sends the worker a plain value that it asked for.

        Args:
            number: that of its question.
        """
        self.reply(number, marshal.dumps(value, 2))

    def reply(self, number: int, value: bytes) -> None:
        """`answer`, with a value that is marshalled already."""
        self._say(ToWorker.VALUE, NUMBER.pack(number) + value)

    def _say(self, kind: bytes, payload: bytes) -> None:
        if self._links is not None and not self.work.over:
            self._links.work.write(pack(kind, payload))

    def fail(self, reason: str) -> None:
        """Asks for its end, because it cannot go on."""
        self._failure = self._failure or reason
        self.condemned = True
        self.order(ToSupervisor.END)

    def _distrust(self, reason: str) -> None:
        """The supervisor is not itself, so there is nobody to tell."""
        self.fail(reason)
        self.abort()

    def abort(self) -> None:
        """Gives the streams up. What is at their other ends will end."""
        if self._links is not None:
            self._links.control.abort()
            self._links.work.abort()

    def _from_worker(self, kind: bytes, payload: bytes) -> None:
        if kind == FromWorker.QUERY or kind == FromWorker.CALL:
            self._received(self, kind, payload)
        elif kind == FromWorker.DONE or kind == FromWorker.PIECE or kind == FromWorker.EXTENDED:
            self._received(self, kind, load(payload, _MOST_HEAD))
        elif kind == FromWorker.UP:
            if self.up.done():
                raise ProtocolError("it is up already")
            self.up.set_result(None)
        elif kind == FromWorker.FAILED:
            self.fail(cut(str(load(payload, _MOST_HEAD)["error"]), MOST_LINE))
        else:
            raise ProtocolError(f"a frame {kind!r}")

    def _from_supervisor(self, kind: bytes, payload: bytes) -> None:
        message = decode(payload)
        stdout, stderr = message["printed"]
        if kind == FromSupervisor.ENDED:
            checkpoint = None
            if message.get("checkpoint") is not None:
                name, done = message["checkpoint"]
                checkpoint = int(name), int(done)
            self.end = End(
                str(message["status"]), str(message["manner"]), (str(stdout), str(stderr)), checkpoint
            )
            self.condemned = True
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
        """Sees what is left of it."""
        kept = self.end is not None and self.end.checkpoint is not None
        if len(self._lost_streams) == 2 or (kept and "work" in self._lost_streams):
            self._conclude()
        elif self._lost_streams or kept:
            # The other stream follows, after what is still on its way there. If it does not, the code closed its
            # worker's, or hid a copy of it somewhere.
            self._loop.call_later(_PATIENCE, self._insist)
        if len(self._lost_streams) == 2 and not self.gone.done():
            self.gone.set_result(None)

    def _conclude(self) -> None:
        if not self.up.done():
            self.up.cancel()
        if not self.ended.done():
            self.ended.set_result(None)
            self._lost(self)

    def _insist(self) -> None:
        if self.ended.done() or self._links is None:
            return
        if self.work.over:
            # If it runs still. What a worker left may take long to end, before the supervisor says that it has ended.
            self.condemned = True
            self.order(ToSupervisor.KILL, {"why": "the code closed the descriptors of the REPL"})
        else:
            self._links.work.abort()
