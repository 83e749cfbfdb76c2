"""A stream of frames from a process of a REPL, with back-pressure in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlm.repl.links import Link
from rlm.repl.worker.protocol.frames import Frames

_TURN_FRAMES, _TURN_BYTES = 32, 1 << 16
"""Frames, and bytes of payload, that one stream delivers in one turn of the event loop. Further frames wait for the next
turn, so that a flood from one REPL does not hold up the others."""


class FrameStream(asyncio.Protocol):
    """Cuts a stream into frames and delivers them, unless something holds the stream.

    Args:
        most: bytes that a frame may have.
        received: called with the kind and the payload of each frame.
        disturbed: called with a reason when the stream carries something that is not the protocol.
        lost: called when the stream has ended.
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
        """Whether the stream delivers nothing more."""

    def attach(self, link: Link) -> None:
        """Takes the writing half of the stream."""
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
            while count < _TURN_FRAMES and size < _TURN_BYTES:
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
        """Delivers and reads nothing until `why` is released: the sender must wait."""
        if not self._holds and self._link is not None:
            self._link.pause_reading()
        self._holds.add(why)

    def release(self, why: str) -> None:
        """Ends the hold for that reason, if there is one."""
        if why in self._holds:
            self._holds.remove(why)
            self._continue()

    def release_all(self) -> None:
        """Ends all holds."""
        if self._holds:
            self._holds.clear()
            self._continue()

    def _continue(self) -> None:
        if not self._holds:
            if self._link is not None:
                self._link.resume_reading()
            self._loop.call_soon(self._deliver)

    def pause_writing(self) -> None:
        """Back-pressure: while the other side does not read replies, its queries are not read either."""
        self._flows.clear()
        self.hold("writing")

    def resume_writing(self) -> None:
        self._flows.set()
        self.release("writing")

    async def flows(self) -> None:
        """Waits until the other side has read what was written, or the stream has ended."""
        while not self._flows.is_set():
            await self._flows.wait()

    def ignore(self) -> None:
        """Reads and discards everything that still arrives, so that the sender is not blocked."""
        self.over = True
        self._frames = Frames()
        self.release_all()

    def disturb(self, error: Exception) -> None:
        """Ends the delivery. Something other than the worker wrote to the stream, so later frames cannot be trusted."""
        self.over = True
        self._disturbed(f"the stream of the REPL was disturbed ({type(error).__name__})")

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        self._flows.set()
        self._lost()
