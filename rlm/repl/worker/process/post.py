"""The mailbox between a worker and its supervisor, a pair of sockets. The worker gets its job and reports its checkpoints
through the mailbox. Functions for the supervisor's end are here too."""

from __future__ import annotations

import os
import socket
import struct

from ..protocol.kinds import Mailbox
from .processes import move_high, receive_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_REPORT = struct.Struct(">cQ")
"""A worker's report: `Mailbox.CHECKPOINT` or `Mailbox.NO_CHECKPOINT`, and how many cells and extensions were done by then."""


class Post:
    """The worker's end.

    Args:
        fd: the mailbox's descriptor, which this object takes over.
    """

    def __init__(self, fd: int) -> None:
        self.join(fd)

    def join(self, fd: int) -> None:
        """Replaces the mailbox: a checkpoint that becomes the worker gets a new one."""
        self._stream = socket.socket(fileno=move_high(fd))
        os.close(fd)

    def receive_job(self, most: int) -> list[int]:
        """Waits for the job: at most `most` descriptors, of the stream to the host and of files with contexts. Ends the process
        if the supervisor closes the mailbox instead."""
        data, fds = receive_fds(self._stream, 1, most)
        if not data:
            os._exit(0)
        return fds

    def report(self, done: int, checkpoint: socket.socket | None) -> None:
        """Tells the supervisor that there is a new checkpoint, or none any more.

        Args:
            done: cells and extensions that the worker had done by then.
            checkpoint: the fork server's end of the mailbox of the checkpoint.

        Raises:
            OSError: the code closed the descriptor.
        """
        if checkpoint is None:
            self._stream.sendall(_REPORT.pack(Mailbox.NO_CHECKPOINT, done))
        else:
            socket.send_fds(self._stream, [_REPORT.pack(Mailbox.CHECKPOINT, done)], [checkpoint.fileno()])

    def close(self) -> None:
        self._stream.close()


def send_job(stream: socket.socket, fds: Sequence[int]) -> bool:
    """Called in the supervisor. Gives a worker its job. Returns False if the worker has ended."""
    try:
        socket.send_fds(stream, [Mailbox.JOB], list(fds))
    except OSError:
        return False
    return True


def receive_report(stream: socket.socket) -> tuple[int, list[int]] | None:
    """Called in the supervisor. Reads a worker's report. The code of the cells may have sent the report.

    Returns:
        The number of cells and extensions that were done by then, and a list: the descriptor of the checkpoint's mailbox, or
        nothing if there is no checkpoint. None: there will be no more reports.
    """
    try:
        data, fds = receive_fds(stream, _REPORT.size, 1)
    except OSError:
        return None
    if len(data) == _REPORT.size:
        return _REPORT.unpack(data)[1], fds
    for fd in fds:
        os.close(fd)
    return None
