"""The fork server: the process that forks all workers and ends their process trees.

It knows neither the host nor what the code of the cells does. It stays small, because a fork costs time for each page of
its parent, and because each worker inherits what is in it.

The supervisor sends orders (`ToForkServer`), packed by `ORDER`: the kind, the number of a REPL, and a value. Some come
with descriptors. The fork server sends reports (`FromForkServer`), packed by `REPORT` in the same way.

    order       value            descriptors
    FORK                         the worker's mailbox, stdout, stderr, and the memory for what it prints
    RESUME                       the same, for the checkpoint
    SAVE                         the mailbox of the new checkpoint; none: drop the last checkpoint
    LIMIT       bytes of memory
    INTERRUPT, KILL, DROP, PING

    report      value
    ENDED, SAVED   the worker's status, as `os.waitpid` gives it
    TOO_MUCH       `TOO_MANY_PROCESSES` or `TOO_MUCH_MEMORY`
    FAILED         an errno
    INTERRUPTED, PONG
"""

# Few imports, as each costs memory in every REPL: no pathlib, no contextlib.
# ruff: noqa: PTH118

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import mmap
import os
import select
import signal
import socket
import struct
import traceback

from ..process import processes, streams
from ..process.post import Post
from ..process.processes import MOST_FDS, receive_fds
from ..process.worker import Worker
from ..protocol.kinds import FromForkServer, ToForkServer
from .checkpoint_handle import CheckpointRegistry
from .memory import CHECK_INTERVAL, MemoryMeter
from .process_trees import NamespaceTrees, ProcessTrees, SubreaperTrees
from .warm_up import warm_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sandbox.sandbox import Sandbox

ORDER = struct.Struct(">cQQ")
REPORT = struct.Struct(">cQq")
TOO_MANY_PROCESSES, TOO_MUCH_MEMORY = 0, 1

# Plain numbers from the bare module: the enumerations of `signal` cost each process 200 KB.
_SIGINT, _SIGCHLD = int(signal.SIGINT), int(signal.SIGCHLD)


class _Tree:
    """The process tree of one REPL, as the fork server keeps it."""

    __slots__ = ("memory_limit", "number", "status", "worker")

    def __init__(self, number: int, worker: int) -> None:
        self.number = number
        """The supervisor's number for the REPL."""
        self.worker = worker
        """The process id of the worker, also when the worker has ended."""
        self.status: int | None = None
        """The status of the worker, as `os.waitpid` gives it. None: the worker runs."""
        self.memory_limit = 0
        """Bytes of memory that all processes may take together. 0: the supervisor has not set a limit."""


class ForkServer:
    """Forks workers and ends their process trees.

    Args:
        stream: the stream from and to the supervisor.
        folder: the directory for the directories of the workers. The fork server removes it when it ends.
        sandbox: the sandbox of this process. None: there is no sandbox. In a sandbox each worker has a private directory in
            place of one in `folder`.
    """

    def __init__(self, stream: socket.socket, folder: str, sandbox: Sandbox | None = None) -> None:
        self._stream = stream
        self._folder = folder
        self._sandbox = sandbox
        self._unsent = bytearray()
        """Reports to send. A blocking send could be a deadlock: the supervisor may be waiting to send an order."""
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._running = True
        self._by_number: dict[int, _Tree] = {}
        self._by_worker: dict[int, _Tree] = {}
        self._checkpoints = CheckpointRegistry(self._watch, self._on_checkpoint_ready, self._end)
        self._memory = MemoryMeter()
        self._trees: ProcessTrees
        if sandbox is None:
            self._trees = SubreaperTrees(self._on_worker_ended, self._on_tree_ended, self._checkpoints.pids)
        else:
            self._trees = NamespaceTrees(sandbox, self._on_worker_ended, self._on_tree_ended, self._watch)

    def run(self) -> None:
        """Serves until the supervisor closes the stream, then ends all trees."""
        warm_up()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        _signal.signal(_SIGCHLD, _ignore)
        _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

        def on_child_ended() -> None:
            os.read(wake_read, 4096)
            self._checkpoints.receive_registrations()  # first, because `reap` may kill leftovers
            self._trees.reap()

        self._watch(wake_read, on_child_ended)
        self._watch(self._stream.fileno(), self._receive_order)
        try:
            while self._running:
                for fd, events in self._poll.poll(self._poll_timeout()):
                    if events & select.POLLOUT:
                        self._send()
                    handler = self._handlers.get(fd)
                    if handler is not None and events & ~select.POLLOUT:
                        handler()
                for pid in self._trees.kill_crowded():
                    self._report(FromForkServer.TOO_MUCH, self._by_worker[pid].number, TOO_MANY_PROCESSES)
                if self._memory.is_due():
                    for pid in self._memory.find_over_limit(self._memory_limits(), self._trees.roots):
                        self._trees.kill(pid)
                        self._report(FromForkServer.TOO_MUCH, self._by_worker[pid].number, TOO_MUCH_MEMORY)
        finally:
            self._trees.end_all()
            if self._sandbox is None:
                processes.remove_tree(self._folder)

    def _watch(self, fd: int, handler: Callable[[], None] | None) -> None:
        """Sets the function that is called when a descriptor becomes readable. None: no function any more."""
        if handler is not None:
            self._handlers[fd] = handler
            self._poll.register(fd, select.POLLIN)
        elif self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _memory_limits(self) -> dict[int, int]:
        """Bytes of memory that a tree may take, by the process id of its worker, for the workers that run."""
        return {
            tree.worker: tree.memory_limit
            for tree in self._by_number.values()
            if tree.memory_limit and tree.status is None
        }

    def _poll_timeout(self) -> float | None:
        """Milliseconds until the next check is due. None: no check is due without an event."""
        waits = self._checkpoints.poll_timeouts()
        if self._trees.count_interval is not None:
            waits.append(self._trees.count_interval)
        if self._memory.available and any(tree.memory_limit for tree in self._by_number.values()):
            waits.append(CHECK_INTERVAL * 1000)
        return min(waits, default=None)

    # orders

    def _receive_order(self) -> None:
        try:
            order, fds = receive_fds(self._stream, ORDER.size, MOST_FDS)
        except OSError:
            order = b""
        if len(order) < ORDER.size:
            self._running = False
            return
        kind, number, value = ORDER.unpack(order)
        if kind == ToForkServer.FORK:
            self._fork(number, fds)
            return
        tree = self._by_number.get(number)
        if kind == ToForkServer.PING:
            self._report(FromForkServer.PONG, number, 0)
        elif kind == ToForkServer.INTERRUPT:
            if tree is not None and tree.status is None:
                processes.kill(-tree.worker, _SIGINT)
            self._report(FromForkServer.INTERRUPTED, number, 0)
        elif kind == ToForkServer.SAVE and tree is not None and tree.status is None:
            self._checkpoints.replace(tree.worker, fds)
        elif kind == ToForkServer.LIMIT and tree is not None:
            tree.memory_limit = value
        elif kind == ToForkServer.RESUME:
            self._resume(number, tree, fds)
        elif tree is not None and kind == ToForkServer.KILL and tree.status is None:
            self._trees.kill(tree.worker)
        elif tree is not None and kind == ToForkServer.DROP:
            self._checkpoints.drop(tree.worker)
            if tree.status is None:
                self._trees.kill(tree.worker)
            else:
                self._end(tree.worker)
        for fd in fds:
            os.close(fd)

    def _fork(self, number: int, fds: list[int]) -> None:
        folder = self._sandbox.home if self._sandbox is not None else os.path.join(self._folder, str(number))
        # The fork server does as much as possible before the fork: each object that a worker creates makes it copy pages.
        os.environ["HOME"] = os.environ["TMPDIR"] = folder
        post, stdout, stderr, memory = fds
        shared = mmap.mmap(memory, streams.SHARED)

        def work() -> None:
            # The worker must never return into the loop of the fork server, whatever fails: even the calls below fail
            # when the code of a cell has closed their descriptors.
            try:
                _signal.set_wakeup_fd(-1)
                _signal.signal(_SIGCHLD, _signal.SIG_DFL)
                worker = Worker(stdout, stderr, shared)
                self._trees.set_up_worker()
                processes.close_all_but([post, *worker.descriptors])
                worker.run(Post(post), self._trees, folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)

        try:
            tree = _Tree(number, self._trees.fork(work))
            self._by_number[number] = self._by_worker[tree.worker] = tree
        except OSError as error:
            self._report(FromForkServer.FAILED, number, error.errno or 0)
        shared.close()
        for fd in fds:
            os.close(fd)

    # ends

    def _on_worker_ended(self, pid: int, status: int) -> None:
        """Keeps the tree if it has a checkpoint, and ends it otherwise."""
        tree = self._by_worker[pid]
        tree.status = status
        if not self._checkpoints.on_worker_ended(pid):
            self._end(pid)

    def _on_checkpoint_ready(self, pid: int) -> None:
        tree = self._by_worker[pid]
        self._trees.kill_leftovers(pid)
        self._report(FromForkServer.SAVED, tree.number, tree.status or 0)

    def _end(self, pid: int) -> None:
        """Ends the rest of the tree of a worker that has ended."""
        self._checkpoints.drop(pid)
        self._trees.end(pid)

    def _on_tree_ended(self, pid: int) -> None:
        tree = self._by_worker.pop(pid)
        del self._by_number[tree.number]
        self._checkpoints.drop(pid)
        self._report(FromForkServer.ENDED, tree.number, tree.status or 0)

    def _resume(self, number: int, tree: _Tree | None, fds: list[int]) -> None:
        """Makes the checkpoint of a tree its worker."""
        ended = tree is not None and tree.status is not None
        resumed = self._checkpoints.resume(tree.worker, fds) if tree is not None and ended else None
        if tree is None or resumed is None:
            self._report(FromForkServer.FAILED, number, errno.ESRCH)
            if tree is not None and ended:
                self._end(tree.worker)
            return
        old, tree.status = tree.worker, None
        tree.worker, pidfd = resumed
        self._by_worker[tree.worker] = self._by_worker.pop(old)
        self._trees.replace_worker(old, tree.worker, pidfd)

    # reports

    def _report(self, kind: bytes, number: int, value: int) -> None:
        self._unsent += REPORT.pack(kind, number, value)
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._stream.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # the supervisor is gone: the end of the stream follows
        self._poll.modify(self._stream.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))


def _ignore(signum: int, frame: object) -> None:
    """The handler of SIGCHLD. With a handler, the signal makes the wake-up pipe readable."""
