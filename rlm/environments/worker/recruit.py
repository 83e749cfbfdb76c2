"""A REPL that is forked before anybody asks for one, and waits for its streams."""

# ruff: noqa: PTH106, PTH118, SIM105 (no pathlib, no contextlib)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import select
import socket
import struct
import traceback

from .processes import close_all_but, die_with_parent
from .supervisor import SIGTERM, Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_FDS = 253
"""The kernel passes no more with one message."""
_MESSAGE = 1 << 12


class Recruit:
    """A REPL's processes, as the warm parent sees them.

    Args:
        home: the warm parent's directory.
        name: of the worker's directory in it, which is made and removed.

    Raises:
        OSError: there can be no more processes or descriptors.
    """

    def __init__(self, home: str, name: str) -> None:
        self.folder = os.path.join(home, name)
        self.stream = -1
        """A copy of the stream to the host. It is closed when nothing of the REPL is left, so that this is what the end
        of the stream means to the host."""
        self._supervisor, ours = socket.socketpair()
        self._worker, theirs = socket.socketpair()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                status = _serve(parent, home, self.folder, ours, theirs)
            finally:
                os._exit(status)
        ours.close()
        theirs.close()

    def enlist(self, fds: Sequence[int], max_output: int) -> None:
        """Gives it its work.

        Args:
            fds: the stream of orders, the worker's stream, and files with the encoded contexts.
            max_output: characters that are kept of what is printed.

        Raises:
            OSError: it has ended.
        """
        stream, *rest = fds
        # The supervisor first: it must know its host before the worker can do anything.
        socket.send_fds(self._supervisor, [b"%d" % max_output], [stream])
        socket.send_fds(self._worker, [b"W"], rest)
        self.stream = stream
        self.leave()

    def leave(self) -> None:
        """Gives it up: if it still waits, it ends."""
        self._worker.close()
        self._supervisor.close()


class _Supervisor(Supervisor):
    """A supervisor that waits for its host."""

    def __init__(self, folder: str, post: socket.socket) -> None:
        super().__init__(folder)
        self._post = post

    def handle(self, fd: int, events: int) -> None:
        if fd == self._post.fileno():
            self._enlist()
        else:
            super().handle(fd, events)

    def bury(self, status: str, manner: str) -> None:
        if self._post.fileno() >= 0:
            self._enlist()  # the worker was quicker to begin, and to end
        super().bury(status, manner)

    def _enlist(self) -> None:
        self.watch(self._post.fileno(), 0)
        try:
            data, fds = receive_fds(self._post, _MESSAGE, 1, socket.MSG_DONTWAIT)
        except OSError:
            fds = []
        self._post.close()
        if fds:
            self.limit(int(data))
            self.listen(fds[0], fds[0])
        else:
            self.end()


def _serve(parent: int, home: str, folder: str, ours: socket.socket, theirs: socket.socket) -> int:
    """Is a supervisor, in the process that was forked for it. Returns the exit status."""
    supervisor = _Supervisor(folder, ours)
    try:
        _signal.set_wakeup_fd(-1)
        os.setsid()
        die_with_parent(parent, SIGTERM)
        close_all_but([ours.fileno(), theirs.fileno()])
        supervisor.prepare()
        supervisor.fork(lambda: _receive(theirs), [theirs.fileno()])
        theirs.close()
        supervisor.watch(ours.fileno(), select.POLLIN)
        supervisor.run()
    except BaseException:
        supervisor.fail(traceback.format_exc())
        return 70
    if os.getppid() != parent:  # it was killed, and this may be the last who knows of its directory
        try:
            os.rmdir(home)
        except OSError:
            pass
    return 0


def _receive(post: socket.socket) -> list[int]:
    data, fds = receive_fds(post, 1, MOST_FDS)
    post.close()
    if not data:
        os._exit(0)  # nobody needed us
    return fds


def receive_fds(stream: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """`socket.recv_fds`, with less to import, allocate and so to copy in each process."""
    data, extra, _, _ = stream.recvmsg(size, socket.CMSG_LEN(4 * most), flags)
    fds: list[int] = []
    for _, _, content in extra:
        fds += struct.unpack(f"{len(content) // 4}i", content)
    return data, fds
