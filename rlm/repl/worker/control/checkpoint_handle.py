"""Checkpoints, as the warm parent has them. `checkpoint.py` has the other side, and says what goes to and fro."""

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
PATIENCE = 5.0
"""Seconds that a checkpoint may take to clear up."""


class Sleeper:
    """One checkpoint. The code of the cells may be at its mailbox too, so nothing that comes from there is relied on but
    what the kernel says.

    Args:
        fd: a descriptor of our end.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # The code may hold it too, so that it may block: nothing but messages that must not wait goes over it.
        self._stream: socket.socket | None
        try:
            self._stream = socket.socket(fileno=fd)
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except OSError:
            self._stream = None
        self.pid = 0
        """Its process id, as soon as it is known."""
        self._pidfd = -1
        """The process itself: when it has ended, another one may get its id."""
        self.due: float | None = None
        """When it must have cleared up, if it was asked to."""

    @property
    def fd(self) -> int:
        return self._fd

    def hear(self) -> bool | None:
        """Takes what it says.

        Returns:
            Whether it has cleared up; None if it is gone, or was none.
        """
        if self._stream is None:
            return None
        try:
            said, extra, _, _ = self._stream.recvmsg(
                1, socket.CMSG_SPACE(_CREDENTIALS.size), socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return False
        except OSError:
            return None
        pid = 0
        for _, kind, content in extra:
            if kind == socket.SCM_CREDENTIALS:
                pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            elif kind in (socket.SCM_RIGHTS, _SCM_PIDFD):  # the code may have asked for those
                for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    os.close(fd)
        if said == Mailbox.HERE and not self.pid and pid > 1:
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError:
                return None
            self.pid = pid
            return False if self._say(Mailbox.HERE) else None
        return True if said == Mailbox.CLEAR and self.due is not None else None

    def ask(self, due: float) -> bool:
        """Asks it to clear up what its worker left. Whether it can be asked.

        Args:
            due: when it must have done that.
        """
        try:
            if not self.pid or not self._say(Mailbox.CLEAR):
                return False
            _signal.pidfd_send_signal(self._pidfd, _signal.SIGCONT)  # the code may have stopped it
        except OSError:
            return False
        self.due = due
        return True

    def rise(self, fds: Sequence[int]) -> int:
        """Gives it what a worker needs.

        Returns:
            A descriptor of its process, which is not closed here any more; -1: it was not there.
        """
        try:
            _signal.pidfd_send_signal(self._pidfd, 0)
        except OSError:
            return -1
        if not self._say(Mailbox.RISE, fds):
            return -1
        pidfd, self._pidfd = self._pidfd, -1
        return pidfd

    def _say(self, word: bytes, fds: Sequence[int] = ()) -> bool:
        try:
            if self._stream is None:
                return False
            socket.send_fds(self._stream, [word], list(fds), socket.MSG_DONTWAIT)
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Lets it go."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        if self._stream is not None:
            self._stream.close()
        else:
            os.close(self._fd)
