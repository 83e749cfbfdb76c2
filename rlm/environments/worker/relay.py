"""A supervisor whose only way to the host is one stream: it passes on what the worker and the host say to each other, in
frames of its own."""

from __future__ import annotations

import _socket
import os
import select
import traceback

from .processes import LINUX
from .supervisor import Supervisor, read
from .wire import ProtocolError, decode, write_all


class Relay(Supervisor):
    """A supervisor for a place that offers one stream and no files. Contexts come over the stream first."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._link = -1
        self._to_worker = bytearray()
        self._arriving: list[tuple[int, int]] = []
        """Contexts that are still to come: descriptor, bytes."""
        self._contexts: list[int] = []

    def obey(self, kind: bytes, payload: bytes) -> None:
        if kind == b"L":
            self._to_worker += payload
            self._flush_link()
        elif kind == b"O":
            message = decode(payload)
            self.limit(message["max_output"])
            self._arriving = [(_unnamed_file(), size) for size in message["contexts"]]
            self._contexts = [fd for fd, _ in self._arriving]
            self._receive(b"")
        elif kind == b"B":
            self._receive(payload)
        else:
            super().obey(kind, payload)

    def handle(self, fd: int, events: int) -> None:
        if fd != self._link:
            super().handle(fd, events)
            return
        if events & ~select.POLLOUT:
            self._read_link()
        if events & select.POLLOUT:
            self._flush_link()

    def bury(self, status: str, manner: str) -> None:
        while self._read_link():
            pass  # what the worker said before its end
        super().bury(status, manner)

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
            self._start()

    def _start(self) -> None:
        ours, theirs = _socket.socketpair()
        fds = [theirs.fileno(), *self._contexts]
        self.fork(lambda: fds, fds)
        theirs.close()
        for fd in self._contexts:
            os.close(fd)
        self._link = ours.detach()
        os.set_blocking(self._link, False)
        self.watch(self._link, select.POLLIN)
        self._flush_link()

    def _flush_link(self) -> None:
        if self._link >= 0:
            self.flush(self._link, self._to_worker)  # if the worker is gone, the host will hear of it

    def _read_link(self) -> bool:
        """Returns whether there was something."""
        data = read(self._link) if self._link >= 0 else None
        if data is None:
            return False
        self.send(b"L", data)
        if not data:  # which is how the host hears of the end
            self.watch(self._link, 0)
            os.close(self._link)
            self._link = -1
        return bool(data)


def _unnamed_file() -> int:
    if LINUX:
        return os.memfd_create("rlm-context")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def relay(source: int, sink: int, folder: str) -> int:
    """Serves a host, for which this process was made.

    Args:
        source, sink: descriptors of the stream from and to the host.
        folder: the worker's own directory, which is made and removed.

    Returns:
        The exit status for the process.
    """
    supervisor = Relay(folder)
    try:
        supervisor.prepare()
        supervisor.listen(source, sink)
        supervisor.run()
    except BaseException:
        supervisor.fail(traceback.format_exc())
        return 70
    return 0
