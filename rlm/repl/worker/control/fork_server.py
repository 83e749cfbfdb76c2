"""The process that workers are forked from. It knows nothing of the host and of what the code of the cells does, and
stays small, because a fork costs what its parent holds, and hands it on.

The supervisor gives it orders: one letter, the number of a REPL, and a value. With "F", fork, come descriptors: where the
worker gets its streams from, its stdout and stderr, and the memory for what it prints. "I" interrupts a worker and its
children, "K" kills it. "L" says how many bytes of memory all processes of a REPL may have together. "C" says that the worker
made a checkpoint, with a descriptor of its mailbox, or, without one, that the last checkpoint is of no use any more. "R", rise,
puts the checkpoint in the place of a worker that has ended, with descriptors as for "F". "D" drops a REPL with all that is left
of it.

It says "I" when it has interrupted, and when nothing of a REPL is left: "E" and the status of the worker, or "N" and why
there was none. "S", and the status, says that nothing is left but a checkpoint. "M" says that a REPL has more than it may
have, processes or memory, and that its worker is being killed.
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
import time
import traceback

from ..process import processes, streams
from ..process.cells import Worker
from ..process.checkpoint import Checkpoints
from ..process.processes import MOST_FDS, receive_fds
from ..protocol.kinds import FromForkServer, ToForkServer
from . import checkpoint_handle
from .checkpoint_handle import Sleeper
from .memory import TICK, Scales
from .process_trees import BoxedTrees, Trees
from .warm_up import rehearse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sandbox.sandbox import Sandbox

ORDER = struct.Struct(">cQQ")
REPORT = struct.Struct(">cQq")
PROCESSES, MEMORY = 0, 1
"""What there is too much of."""

# Plain numbers and the bare module: the enumerations of `signal` cost each process 200 KB.
_SIGINT, _SIGCHLD = int(signal.SIGINT), int(signal.SIGCHLD)


class _Tree:
    """What there is of a REPL."""

    __slots__ = ("memory", "number", "sleeper", "status", "worker")

    def __init__(self, number: int, worker: int) -> None:
        self.number = number
        self.worker = worker
        """The process id of the worker, also when it has ended."""
        self.status: int | None = None
        """How it ended."""
        self.sleeper: Sleeper | None = None
        self.memory = 0
        """Bytes that all of it may have; 0: nobody said."""


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
        self._unsent = bytearray()
        """Reports. We wait for nobody to take them: the supervisor may be waiting for us to take its orders."""
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._running = True
        self._repls: dict[int, _Tree] = {}
        self._workers: dict[int, _Tree] = {}
        """The same, by the worker's process id."""
        self._unheard: set[_Tree] = set()
        """Those with a checkpoint that has not said who it is."""
        self._clearing: set[_Tree] = set()
        """Those with one that was asked to clear up."""
        self._scales = Scales()
        self._trees: Trees | BoxedTrees
        if sandbox is None:
            self._trees = Trees(self._ended, self._gone, self._spared)
        else:
            self._trees = BoxedTrees(sandbox, self._ended, self._gone, self._watch)

    def run(self) -> None:
        """Serves until the supervisor is gone, and leaves nobody behind."""
        rehearse()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        _signal.signal(_SIGCHLD, _awake)
        _signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

        def reap() -> None:
            os.read(wake_read, 4096)
            for repl in list(self._unheard):
                if repl.sleeper is not None:
                    self._hear(repl, repl.sleeper)  # it must be known before its worker is buried
            self._trees.reap()

        self._watch(wake_read, reap)
        self._watch(self._stream.fileno(), self._obey)
        try:
            while self._running:
                for fd, events in self._poll.poll(self._patience()):
                    if events & select.POLLOUT:
                        self._send()
                    handler = self._handlers.get(fd)
                    if handler is not None and events & ~select.POLLOUT:
                        handler()
                for pid in self._trees.look():
                    self._report(FromForkServer.TOO_MUCH, self._workers[pid].number, PROCESSES)
                if self._scales.is_due():
                    for pid in self._scales.look(self._limits(), self._trees.roots):
                        self._trees.kill(pid)
                        self._report(FromForkServer.TOO_MUCH, self._workers[pid].number, MEMORY)
        finally:
            self._trees.end_all()
            if self._sandbox is None:
                processes.remove_tree(self._folder)

    def _watch(self, fd: int, handler: Callable[[], None] | None) -> None:
        if handler is not None:
            self._handlers[fd] = handler
            self._poll.register(fd, select.POLLIN)
        elif self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _limits(self) -> dict[int, int]:
        """Bytes of memory, by worker that runs."""
        return {
            repl.worker: repl.memory for repl in self._repls.values() if repl.memory and repl.status is None
        }

    def _patience(self) -> float | None:
        """Milliseconds until something is to be looked at. Ends what takes too long to clear up."""
        waits: list[float] = [self._trees.patience] if self._trees.patience is not None else []
        if self._scales.works and any(repl.memory for repl in self._repls.values()):
            waits.append(TICK * 1000)
        now = time.monotonic()
        for repl in list(self._clearing):
            if repl.sleeper is None or repl.sleeper.due is None:
                self._clearing.discard(repl)
            elif repl.sleeper.due <= now:
                self._clearing.discard(repl)
                self._end(repl)
            else:
                waits.append((repl.sleeper.due - now) * 1000 + 1)
        return min(waits, default=None)

    def _obey(self) -> None:
        """Does what the supervisor says."""
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
        repl = self._repls.get(number)
        if kind == ToForkServer.INTERRUPT:
            if repl is not None and repl.status is None:
                processes.kill(-repl.worker, _SIGINT)
            self._report(FromForkServer.INTERRUPTED, number, 0)
        elif kind == ToForkServer.SAVE and repl is not None and repl.status is None:
            self._replace_sleeper(repl, fds)
        elif kind == ToForkServer.LIMIT and repl is not None:
            repl.memory = value
        elif kind == ToForkServer.RESUME:
            self._raise(number, repl, fds)
        elif repl is not None and kind == ToForkServer.KILL and repl.status is None:
            self._trees.kill(repl.worker)
        elif repl is not None and kind == ToForkServer.DROP:
            self._replace_sleeper(repl, [])
            if repl.status is None:
                self._trees.kill(repl.worker)
            else:
                self._end(repl)
        for fd in fds:
            os.close(fd)

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
                worker.run(Checkpoints(post, self._trees), folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)

        try:
            repl = _Tree(number, self._trees.fork(work))
            self._repls[number] = self._workers[repl.worker] = repl
        except OSError as error:
            self._report(FromForkServer.FAILED, number, error.errno or 0)
        shared.close()
        for fd in fds:
            os.close(fd)

    # the ends of workers

    def _ended(self, pid: int, status: int) -> None:
        """A worker has ended."""
        repl = self._workers[pid]
        repl.status = status
        if repl.sleeper is not None and repl.sleeper.ask(time.monotonic() + checkpoint_handle.PATIENCE):
            self._clearing.add(repl)
        else:
            self._end(repl)

    def _end(self, repl: _Tree) -> None:
        """Ends what is left of a REPL."""
        self._replace_sleeper(repl, [])
        self._trees.end(repl.worker)

    def _gone(self, pid: int) -> None:
        """Nothing is left of a REPL."""
        repl = self._workers.pop(pid)
        del self._repls[repl.number]
        self._replace_sleeper(repl, [])
        self._report(FromForkServer.ENDED, repl.number, repl.status or 0)

    # checkpoints

    def _spared(self) -> list[int]:
        return [repl.sleeper.pid for repl in self._repls.values() if repl.sleeper is not None]

    def _replace_sleeper(self, repl: _Tree, fds: list[int]) -> None:
        """Lets the checkpoint of a REPL go.

        Args:
            fds: a descriptor of the mailbox of the next one, if there is one, which is taken from it.
        """
        if repl.sleeper is not None:
            self._watch(repl.sleeper.fd, None)
            repl.sleeper.close()
            repl.sleeper = None
            self._unheard.discard(repl)
        if fds:
            sleeper = repl.sleeper = Sleeper(fds.pop(0))
            self._unheard.add(repl)
            self._watch(sleeper.fd, lambda: self._hear(repl, sleeper))

    def _hear(self, repl: _Tree, sleeper: Sleeper) -> None:
        """A checkpoint says something."""
        cleared = sleeper.hear()
        if sleeper.pid:
            self._unheard.discard(repl)
        if cleared is None:
            self._replace_sleeper(repl, [])
            if repl.status is not None:
                self._end(repl)
        elif cleared and repl.status is not None:
            sleeper.due = None
            self._trees.clear(repl.worker)
            self._report(FromForkServer.SAVED, repl.number, repl.status)

    def _raise(self, number: int, repl: _Tree | None, fds: list[int]) -> None:
        """Puts a checkpoint in the place of its worker."""
        sleeper = repl.sleeper if repl is not None else None
        pidfd = -1
        if sleeper is not None and repl is not None and repl.status is not None:
            pidfd = sleeper.rise(fds)
        if repl is None or sleeper is None or pidfd < 0:
            self._report(FromForkServer.FAILED, number, errno.ESRCH)
            if repl is not None and repl.status is not None:
                self._end(repl)
            return
        del self._workers[repl.worker]
        before, repl.worker, repl.status = repl.worker, sleeper.pid, None
        self._workers[repl.worker] = repl
        self._replace_sleeper(repl, [])
        self._trees.replace(before, repl.worker, pidfd)

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
            self._unsent.clear()  # the supervisor is gone, which we shall see
        self._poll.modify(self._stream.fileno(), select.POLLIN | (select.POLLOUT if self._unsent else 0))


def _awake(signum: int, frame: object) -> None:
    """That there was a signal comes through the wake-up pipe; this keeps it from ending us."""
