"""Two streams over one: the host's end. The far end is `worker.control.relay`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlm.errors import REPLError
from rlm.repl.interface import SessionSpec
from rlm.repl.links import Link, Links
from rlm.repl.worker.protocol.frames import Frames, ProtocolError, encode, pack
from rlm.repl.worker.protocol.kinds import GREETING, FromSupervisor, OneStream

_DISTURBED = FromSupervisor.ENDED + b"\xff\xff\xff\xff"
"""The header of a frame that is too long to be one. It makes the stream of the supervisor count as disturbed."""
_MOST_NOISE = 4096
"""Bytes before the greeting that are kept, for the error."""


class Relay(asyncio.Protocol):
    """Carries the streams of a supervisor and of its worker over one stream, for a place with a single stream.

    All bytes before the worker's greeting are skipped: a login message, or the output of a program that starts the worker.

    Args:
        control, work: the protocols of the two streams, as `Place.connect` gets them.
    """

    def __init__(self, control: asyncio.Protocol, work: asyncio.Protocol) -> None:
        self._control, self._work = control, work
        self._frames = Frames()
        self._early = b""
        """The last bytes before the greeting."""
        self._greeted = False
        self._over = False
        self._decided = asyncio.Event()
        """Set when the worker has greeted, or the stream has ended."""
        self._flows = asyncio.Event()
        self._flows.set()
        self._working = True

    async def open(self, link: Link, spec: SessionSpec, end_supervisor: Callable[[], None]) -> Links:
        """Waits for the worker's greeting, and sends the contexts. Back-pressure: each piece of a context waits until the
        link takes more, so no more than one piece, about 1 MB, waits in the link's buffer beyond its own limit.

        Args:
            link: the one stream.
            end_supervisor: see `Links`.

        Returns:
            The two streams.

        Raises:
            REPLError: the stream ended before the worker greeted.
        """
        await self.greeting()
        sizes = [context.encoded_size for context in spec.contexts]
        link.write(
            pack(OneStream.OPEN, encode({"contexts": sizes, "settings": spec.settings.for_supervisor()}))
        )
        for context in spec.contexts:
            for chunk in context.chunks():
                await self._flows.wait()
                if self._over:
                    break
                link.write(pack(OneStream.CONTEXT, chunk))
        return Links(link, _WorkLink(link), end_supervisor)

    async def greeting(self) -> None:
        """Waits for the worker's greeting.

        Raises:
            REPLError: the stream ended before the greeting.
        """
        await self._decided.wait()
        if not self._greeted:
            raise REPLError(f"the program ended before its worker started{self.noise}")

    @property
    def noise(self) -> str:
        """For an error: the text that the stream carried before the greeting. Empty if there was none."""
        text = self._early.decode("utf-8", "replace").strip()
        return f"; it printed: {text}" if text else ""

    def data_received(self, data: bytes) -> None:
        if not self._greeted:
            early, greeting, data = (self._early + data).partition(GREETING)
            if not greeting:
                self._early = early[-_MOST_NOISE:]
                return
            self._early = b""
            self._greeted = True
            self._decided.set()
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                kind, payload = frame
                if kind != OneStream.WORK:
                    self._control.data_received(pack(kind, payload))
                elif payload:
                    self._work.data_received(payload)
                else:
                    self._end_work(None)
        except ProtocolError:
            self._control.data_received(_DISTURBED)

    def pause_writing(self) -> None:
        self._flows.clear()
        self._work.pause_writing()

    def resume_writing(self) -> None:
        self._flows.set()
        self._work.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._decided.set()
        self._flows.set()
        self._end_work(exc)
        self._control.connection_lost(exc)

    def _end_work(self, exc: Exception | None) -> None:
        if self._working:
            self._working = False
            self._work.connection_lost(exc)


class _WorkLink:
    """The worker's stream within the one stream."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def write(self, data: bytes) -> None:
        self._link.write(pack(OneStream.WORK, data))

    def abort(self) -> None:
        self._link.abort()

    # There is only one stream, so a pause delays the frames of the supervisor too.

    def pause_reading(self) -> None:
        self._link.pause_reading()

    def resume_reading(self) -> None:
        self._link.resume_reading()
