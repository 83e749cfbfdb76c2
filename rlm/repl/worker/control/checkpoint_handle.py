"""The fork server's side of a checkpoint. `process/checkpoint.py` has the checkpoint's own side, and the protocol."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import socket
import struct

from ..protocol.kinds import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CREDENTIALS = struct.Struct("3i")
_SCM_PIDFD = 4
CLEAR_TIMEOUT = 5.0
"""Seconds that a checkpoint has to kill what its worker left."""


class CheckpointHandle:
    """One checkpoint, by the fork server's end of its mailbox.

    The code of the cells may hold either end of the mailbox too. So a message alone proves nothing: the checkpoint's
    process id comes from the kernel, and all calls are non-blocking.

    Args:
        fd: a descriptor of the fork server's end, which the handle takes over.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mailbox: socket.socket | None
        try:
            self._mailbox = socket.socket(fileno=fd)
            self._mailbox.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError:  # the code sent a descriptor that is no socket
            self._mailbox = None
        self.pid = 0
        """The checkpoint's process id. 0 until the checkpoint has sent its first message."""
        self._pidfd = -1
        """A pidfd of the checkpoint. It stays unambiguous when another process gets the same id."""
        self.clear_deadline: float | None = None
        """When the checkpoint must have killed what its worker left (`time.monotonic`). None: it was not asked to."""

    @property
    def fd(self) -> int:
        """The descriptor of the mailbox, to poll."""
        return self._fd

    def receive(self) -> bool | None:
        """Receives a message of the checkpoint.

        Returns:
            True if the checkpoint has killed what its worker left. None if there is no checkpoint, or none any more.
            Otherwise False.
        """
        if self._mailbox is None:
            return None
        try:
            data, ancillary, _, _ = self._mailbox.recvmsg(
                1, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return False
        except OSError:
            return None
        pid = 0
        for _, kind, content in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            elif kind in (
                socket.SCM_RIGHTS,
                _SCM_PIDFD,
            ):  # the code sent descriptors, or had the kernel add one
                for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    os.close(fd)
        if data == Mailbox.REGISTER and not self.pid and pid > 1:
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError:
                return None
            self.pid = pid
            return False if self._send(Mailbox.REGISTER) else None
        return True if data == Mailbox.CLEAR and self.clear_deadline is not None else None

    def ask_to_clear(self, deadline: float) -> bool:
        """Asks the checkpoint to kill what its worker left.

        Args:
            deadline: when it must be done (`time.monotonic`).

        Returns:
            Whether the checkpoint could be asked.
        """
        try:
            if not self.pid or not self._send(Mailbox.CLEAR):
                return False
            _signal.pidfd_send_signal(self._pidfd, _signal.SIGCONT)  # the code may have stopped it
        except OSError:
            return False
        self.clear_deadline = deadline
        return True

    def resume(self, fds: Sequence[int]) -> int:
        """Tells the checkpoint to go on as the worker.

        Args:
            fds: the descriptors that a worker needs.

        Returns:
            A pidfd of the checkpoint, which the caller must close. -1: the checkpoint is gone.
        """
        try:
            _signal.pidfd_send_signal(self._pidfd, 0)
        except OSError:
            return -1
        if not self._send(Mailbox.RESUME, fds):
            return -1
        pidfd, self._pidfd = self._pidfd, -1
        return pidfd

    def _send(self, word: bytes, fds: Sequence[int] = ()) -> bool:
        """Sends a message. Returns whether that worked."""
        try:
            if self._mailbox is None:
                return False
            socket.send_fds(self._mailbox, [word], list(fds), socket.MSG_DONTWAIT)
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Closes the mailbox. A checkpoint that was not resumed ends then."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._mailbox is not None:
            self._mailbox.close()
        else:
            os.close(self._fd)
