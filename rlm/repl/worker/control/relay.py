"""A supervisor of one worker whose only connection to the host is one byte stream. It relays what the worker and the host
send to each other, in frames (`OneStream`)."""

# ruff: noqa: PTH102 (no pathlib)

from __future__ import annotations

import os
import socket

from ..protocol.frames import ProtocolError, decode, write_all
from ..protocol.kinds import OneStream
from .monitor import Monitor
from .poll_loop import Outbox, read
from .printed_output import unnamed_file
from .supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _RelayMonitor(Monitor):
    """Monitors a worker, and relays its stream. The contexts come first, over the stream of the host."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings: dict[str, int] = {}
        self._arriving: list[tuple[int, int]] = []
        """Contexts that have not arrived in full: the descriptor of the file for it, and the bytes that are missing."""
        self._contexts: list[int] = []
        ours, self._theirs = socket.socketpair()
        self._link = ours.detach()
        os.set_blocking(self._link, False)
        self._to_worker: Outbox | None = Outbox(self._loop, self._link, self._read_worker)

    def on_frame(self, kind: bytes, payload: bytes) -> None:
        if kind == OneStream.WORK:
            if self._to_worker is not None:
                self._to_worker.send(payload)  # if the worker has ended, the host learns of it in another way
        elif kind == OneStream.OPEN:
            message = decode(payload)
            self._settings = message["settings"]
            self._arriving = [(unnamed_file(), size) for size in message["contexts"]]
            self._contexts = [fd for fd, _ in self._arriving]
            self._receive_context(b"")
        elif kind == OneStream.CONTEXT:
            self._receive_context(payload)
        else:
            super().on_frame(kind, payload)

    def on_tree_ended(self, status: int) -> None:
        while self._read_worker():
            pass  # relay what the worker sent before its end
        super().on_tree_ended(status)

    def _receive_context(self, data: bytes) -> None:
        """Takes a piece of the contexts, which arrive one after the other. A frame never has pieces of two contexts.

        Gives the worker its job when all contexts have arrived.
        """
        if data and not self._arriving:
            raise ProtocolError("more bytes of contexts than were announced")
        if data:
            fd, missing = self._arriving[0]
            write_all(fd, data)
            self._arriving[0] = (fd, missing - len(data))
        while self._arriving and self._arriving[0][1] <= 0:
            del self._arriving[0]
        if not self._arriving:
            self.give_job(self._settings, [self._theirs.fileno(), *self._contexts])
            self._theirs.close()
            for fd in self._contexts:
                os.close(fd)

    def _read_worker(self, events: int = 0) -> bool:
        """Relays what the worker has sent. Returns whether there was something."""
        data = read(self._link) if self._to_worker is not None else None
        if data is None or self._to_worker is None:
            return False
        self.send(OneStream.WORK, data)
        if not data:  # an empty frame tells the host that the worker's stream has ended
            self._to_worker.close()
            self._to_worker = None
        return bool(data)


class _RelaySupervisor(Supervisor):
    """Ends with its only REPL."""

    def on_monitor_ended(self, monitor: Monitor) -> None:
        self.loop.end()


def relay(source: int, sink: int, folder: str) -> None:
    """Serves a host with one REPL, in a process that exists for this alone, until the REPL ends.

    Args:
        source, sink: descriptors of the stream from and to the host.
        folder: a directory for the worker, which is made and removed here.
    """
    os.mkdir(folder, 0o700)
    supervisor = _RelaySupervisor(folder)
    supervisor.fork(_RelayMonitor).connect_host(source, sink)
    supervisor.run()
