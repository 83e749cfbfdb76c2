"""The mailbox between a worker and its supervisor: the worker gets its job by it, and reports its checkpoints. It is a pair of
sockets. Functions for the supervisor's end are here too."""

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
        fd: its descriptor, which is taken.
    """

    def __init__(self, fd: int) -> None:
        self.join(fd)

    def join(self, fd: int) -> None:
        """Takes another mailbox: a checkpoint that becomes the worker gets a new one."""
        self._stream = socket.socket(fileno=move_high(fd))
        os.close(fd)

    def receive_job(self, most: int) -> list[int]:
        """Waits for the job: at most `most` descriptors, of the stream to the host and of files with contexts. Ends the process
        if there will be no job."""
        data, fds = receive_fds(self._stream, 1, most)
        if not data:
            os._exit(0)
        return fds

    def report(self, done: int, checkpoint: socket.socket | None) -> None:
        """Says that there is a new checkpoint, or none any more.

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
    """Gives a worker its job, from the supervisor. Returns whether the worker was there to take it."""
    try:
        socket.send_fds(stream, [Mailbox.JOB], list(fds))
    except OSError:
        return False
    return True


def receive_report(stream: socket.socket) -> tuple[int, list[int]] | None:
    """Reads a worker's report, in the supervisor. The code of the cells may have sent it.

    Returns:
        Cells and extensions that were done by then, and a descriptor of the checkpoint's mailbox, or none if there is no
        checkpoint; None if there will be no more reports.
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
