"""A supervisor of one worker, whose only way to the host is one stream: it passes on what the worker and the host say to
each other, in frames of its own."""

# ruff: noqa: PTH102 (no pathlib)

from __future__ import annotations

import os
import socket

from ..protocol.frames import ProtocolError, decode, write_all
from ..protocol.kinds import OneStream
from .monitor import Watch, unnamed_file
from .poll_loop import Outbox, read
from .supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Relayed(Watch):
    """A worker at a place that offers one stream and no files. Contexts come over the stream first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: dict[str, int] = {}
        self._arriving: list[tuple[int, int]] = []
        """Contexts that are still to come: descriptor, bytes."""
        self._contexts: list[int] = []
        ours, self._theirs = socket.socketpair()
        self._link = ours.detach()
        os.set_blocking(self._link, False)
        self._to_worker: Outbox | None = Outbox(self._loop, self._link, self._read_link)

    def obey(self, kind: bytes, payload: bytes) -> None:
        if kind == OneStream.WORK:
            if self._to_worker is not None:
                self._to_worker.send(payload)  # if the worker is gone, the host will hear of it
        elif kind == OneStream.OPEN:
            message = decode(payload)
            self._settings = message["settings"]
            self._arriving = [(unnamed_file(), size) for size in message["contexts"]]
            self._contexts = [fd for fd, _ in self._arriving]
            self._receive(b"")
        elif kind == OneStream.CONTEXT:
            self._receive(payload)
        else:
            super().obey(kind, payload)

    def ended(self, status: int) -> None:
        while self._read_link():
            pass  # what the worker said before its end
        super().ended(status)

    def _receive(self, data: bytes) -> None:
        """Takes a piece of the contexts, which arrive one after the other, each beginning a frame of its own."""
        if data and not self._arriving:
            raise ProtocolError("more bytes of contexts than were announced")
        if data:
            fd, missing = self._arriving[0]
            write_all(fd, data)
            self._arriving[0] = (fd, missing - len(data))
        while self._arriving and self._arriving[0][1] <= 0:
            del self._arriving[0]
        if not self._arriving:
            self.enlist(self._settings, [self._theirs.fileno(), *self._contexts])
            self._theirs.close()
            for fd in self._contexts:
                os.close(fd)

    def _read_link(self, events: int = 0) -> bool:
        """Returns whether there was something."""
        data = read(self._link) if self._to_worker is not None else None
        if data is None or self._to_worker is None:
            return False
        self.send(OneStream.WORK, data)
        if not data:  # which is how the host hears of the end
            self._to_worker.close()
            self._to_worker = None
        return bool(data)


class _Relay(Supervisor):
    def over(self, watch: Watch) -> None:
        self.loop.end()


def relay(source: int, sink: int, folder: str) -> None:
    """Serves a host, for which this process was made, to the end.

    Args:
        source, sink: descriptors of the stream from and to it.
        folder: a directory for the worker, which is made and removed.
    """
    os.mkdir(folder, 0o700)
    supervisor = _Relay(folder)
    supervisor.fork(_Relayed).listen(source, sink)
    supervisor.run()
