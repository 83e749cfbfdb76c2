"""The process that workers are forked from. It knows nothing of the host and of what the code of the cells does, and
stays small, because a fork costs what its parent holds, and hands it on.

The supervisor gives it orders: one letter and the number of a REPL. With "F", fork, come descriptors: where the worker
gets its streams from, its stdout and stderr, and the memory for what it prints. "I" interrupts a worker and its children,
"K" kills it. It says "I" when it has interrupted, and when nothing of a REPL is left: "E" and the status of the worker,
or "N" and why there was none. "M" says that it had more processes than it may have, and is being killed.
"""

# Few imports, as each costs memory in every REPL: no pathlib, no contextlib.
# ruff: noqa: PTH118, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import mmap
import os
import select
import signal
import socket
import struct
import traceback

from . import processes, streams
from .cells import Worker
from .rehearsal import rehearse
from .trees import BoxedTrees, Trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .sandbox import Sandbox

ORDER = struct.Struct(">cQ")
REPORT = struct.Struct(">cQq")
MOST_FDS = 253
"""The kernel passes no more with one message."""

# Plain numbers and the bare module: the enumerations of `signal` cost each process 200 KB.
_SIGINT, _SIGCHLD = int(signal.SIGINT), int(signal.SIGCHLD)


class Parent:
    """Forks workers, and ends what they leave behind.

    Args:
        stream: to and from the supervisor.
        folder: the workers' directories are made in it. It is removed in the end.
        sandbox: the one that this process lives in, if any. Workers have their directories in it.
    """

    def __init__(self, stream: socket.socket, folder: str, sandbox: Sandbox | None = None) -> None:
        self._stream = stream
        self._folder = folder
        self._sandbox = sandbox
        self._trees: Trees | BoxedTrees = Trees() if sandbox is None else BoxedTrees(sandbox)
        self._numbers: dict[int, int] = {}
        """The REPLs' numbers, by the worker's process id."""

    def run(self) -> None:
        """Serves until the supervisor is gone, and leaves nobody behind."""
        rehearse()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        _signal.signal(_SIGCHLD, _awake)
        _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        try:
            while True:
                for fd, _ in poll.poll(self._trees.patience):
                    if fd == wake_read:
                        os.read(wake_read, 4096)
                        self._reap()
                    elif not self._obey():
                        return
                for pid in self._trees.look():
                    self._report(b"M", self._numbers[pid], 0)
        finally:
            self._trees.end()
            if self._sandbox is None:
                processes.remove_tree(self._folder)

    def _obey(self) -> bool:
        """Does what the supervisor says. Returns whether it is there."""
        try:
            order, fds = receive_fds(self._stream, ORDER.size, MOST_FDS)
        except OSError:
            return False
        if len(order) < ORDER.size:
            return False
        kind, number = ORDER.unpack(order)
        if kind == b"F":
            self._fork(number, fds)
            return True
        for pid, other in self._numbers.items():
            if other == number:
                if kind == b"I":
                    processes.kill(-pid, _SIGINT)
                else:
                    self._trees.kill(pid)
        if kind == b"I":
            self._report(kind, number, 0)
        return True

    def _fork(self, number: int, fds: list[int]) -> None:
        folder = self._sandbox.home if self._sandbox is not None else os.path.join(self._folder, str(number))
        # What can be done here is: each object that a worker makes changes pages of its own.
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        post, stdout, stderr, memory = fds
        shared = mmap.mmap(memory, streams.SHARED)

        def work() -> None:
            # Whatever happens, even to this line once the code closed its descriptors: the worker must not return
            # into what is its parent's to do.
            try:
                _signal.set_wakeup_fd(-1)
                _signal.signal(_SIGCHLD, _signal.SIG_DFL)
                worker = Worker(stdout, stderr, shared)
                self._trees.settle()
                processes.close_all_but([post, *worker.descriptors])
                worker.run(lambda: _receive(post), folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)

        try:
            self._numbers[self._trees.fork(work)] = number
        except OSError as error:
            self._report(b"N", number, error.errno or 0)
        shared.close()
        for fd in fds:
            os.close(fd)

    def _reap(self) -> None:
        for pid, status in self._trees.reap().items():
            number = self._numbers.pop(pid, None)
            if number is not None:
                self._report(b"E", number, status)

    def _report(self, kind: bytes, number: int, value: int) -> None:
        try:
            self._stream.sendall(REPORT.pack(kind, number, value))
        except OSError:
            pass  # the supervisor is gone, which we shall see


def _receive(post: int) -> list[int]:
    """Waits for the descriptors of the worker's stream and of its contexts."""
    with socket.socket(fileno=post) as stream:
        data, fds = receive_fds(stream, 1, MOST_FDS)
    if not data:
        os._exit(0)  # nobody needed us
    return fds


def _awake(signum: int, frame: object) -> None:
    """That there was a signal comes through the wake-up pipe; this keeps it from ending us."""


def receive_fds(stream: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """`socket.recv_fds`, with less to import, allocate and so to copy in each process."""
    data, extra, _, _ = stream.recvmsg(size, socket.CMSG_LEN(4 * most), flags)
    fds: list[int] = []
    for _, _, content in extra:
        fds += struct.unpack(f"{len(content) // 4}i", content)
    return data, fds
