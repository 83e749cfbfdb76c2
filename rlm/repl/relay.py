"""One stream for two: the host end."""

from __future__ import annotations

import asyncio

from rlm.repl.interface import SessionSpec
from rlm.repl.remote import Link, Links
from rlm.repl.worker.protocol.frames import Frames, ProtocolError, encode, pack
from rlm.repl.worker.protocol.kinds import FromSupervisor, OneStream

_IMPOSSIBLE = FromSupervisor.ENDED + b"\xff\xff\xff\xff"
"""The begin of a frame that cannot be."""


class Relay(asyncio.Protocol):
    """Makes two streams of one, for a place that has no more. At the other end is `worker.relay`.

    Args:
        control, work: the protocols of the two, as `Place.connect` has them.
    """

    def __init__(self, control: asyncio.Protocol, work: asyncio.Protocol) -> None:
        self._control, self._work = control, work
        self._frames = Frames()
        self._working = True

    def open(self, link: Link, spec: SessionSpec) -> Links:
        """Sends the contexts.

        Args:
            link: the one stream.

        Returns:
            The two streams.
        """
        sizes = [context.encoded_size for context in spec.contexts]
        link.write(
            pack(OneStream.OPEN, encode({"contexts": sizes, "settings": spec.settings.for_supervisor()}))
        )
        for context in spec.contexts:
            for chunk in context.chunks():
                link.write(pack(OneStream.CONTEXT, chunk))
        return Links(link, _Within(link))

    def data_received(self, data: bytes) -> None:
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
            self._control.data_received(_IMPOSSIBLE)

    def pause_writing(self) -> None:
        self._work.pause_writing()

    def resume_writing(self) -> None:
        self._work.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_work(exc)
        self._control.connection_lost(exc)

    def _end_work(self, exc: Exception | None) -> None:
        if self._working:
            self._working = False
            self._work.connection_lost(exc)


class _Within:
    """A stream within a stream."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def write(self, data: bytes) -> None:
        self._link.write(pack(OneStream.WORK, data))

    def abort(self) -> None:
        self._link.abort()

    # What the supervisor says waits too, as there is but one stream.

    def pause_reading(self) -> None:
        self._link.pause_reading()

    def resume_reading(self) -> None:
        self._link.resume_reading()
