"""Checkpoints: forks of the worker, made between two cells, that sleep. If the worker ends in the next cell, the checkpoint
replaces it, with the namespace as it was before that cell. Linux only.

The protocol of the worker, its checkpoint and the fork server (`protocol.kinds.Mailbox`):

1. The worker makes a pair of sockets and forks. One socket is the checkpoint's mailbox. The worker sends the other one to the
   supervisor (`post.Post.report`), which passes it on to the fork server.
2. The checkpoint says REGISTER, and the fork server answers REGISTER: from now on the checkpoint is registered.
3. When the worker has ended, the fork server sends CLEAR. The checkpoint ends what the worker left, and answers CLEAR.
4. The fork server sends RESUME with the descriptors of a worker, and the checkpoint becomes the worker.

A checkpoint ends when its mailbox is closed. The fork server's side is `control.checkpoint_handle`, the host's is
`rlm.repl.checkpoint`.
"""

# Few imports, because each costs memory in every worker: no pathlib, no contextlib.
# ruff: noqa: PTH208, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import os
import resource
import select
import socket
import stat
import sys
import time

from ..protocol.kinds import Mailbox
from .processes import LINUX, fork_twice, kill, libc, receive_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol

    from .post import Post

    class WorkerTree(Protocol):
        """The process tree of a worker and its checkpoint, as these two use it (`control.process_trees`)."""

        def pass_on_orphans(self, on: bool) -> None:
            """Called in the worker. Sets whether its orphaned descendants become children of the worker's parent."""

        def kill_what_only_a_checkpoint_finds(self) -> None:
            """Called in the checkpoint when the worker has ended. Kills the leftovers that the fork server cannot find."""

        def set_up_resumed(self) -> None:
            """Called in the checkpoint when it becomes the worker."""


_DESCRIPTORS = 4
"""Descriptors that a checkpoint gets with RESUME: the mailbox to the supervisor, stdout, stderr, and the memory for what it
prints."""

_REGISTRATION = 10_000
"""Milliseconds that the fork server has to register a checkpoint."""
_SHARE = 10
"""Checkpoints between turns take at most a tenth of the time: the worker must be idle for this many times as long as the last
checkpoint took. Where many REPLs share few cores, a checkpoint takes longer, so there are fewer."""
_SIGINT, _SIGCHLD = int(_signal.SIGINT), int(_signal.SIGCHLD)


class Checkpoints:
    """The checkpoints of one worker. There is never more than one.

    Args:
        post: the worker's mailbox.
        tree: the worker's process tree.
        most_bytes: memory up to which a worker gets a checkpoint; 0: never.
        after: seconds for which the worker must be idle before it makes one; 0: it makes one at once.
    """

    def __init__(self, post: Post, tree: WorkerTree, most_bytes: int, after: float) -> None:
        self._post, self._tree = post, tree
        self._most_bytes, self._after = most_bytes, after
        self._unforkable = False
        """Whether a library has threads that do not stop for a fork. A checkpoint would lack these threads."""
        self._seconds = 0.0
        """Seconds that the last checkpoint took."""

    def take(self, done: int, spare: Sequence[int], idle: Callable[[float], bool] | None) -> list[int] | None:
        """Makes a checkpoint, in place of the last one, if it is wanted and possible. From the main thread, between cells.

        Args:
            done: cells and extensions that the worker has done.
            spare: descriptors that the checkpoint does not need.
            idle: waits for some seconds, and returns whether the worker had nothing to do; None: the worker need not be idle.

        Returns:
            None in the worker. In the checkpoint the method returns when the checkpoint becomes the worker: descriptors of its
            stdout and stderr, and of the memory for what it prints.
        """
        if not self._most_bytes or not LINUX or libc is None:
            return None
        if idle is not None and self._after and not idle(max(self._after, _SHARE * self._seconds)):
            return None
        made: bool | list[int] = False
        started = time.monotonic()
        try:
            if self._fits():
                made = self._make(done, spare)
        except OSError:
            pass  # there can be no more processes or descriptors
        self._seconds = time.monotonic() - started
        if isinstance(made, list):
            self._seconds = 0.0  # the checkpoint slept most of that time
            return made
        if not made:
            try:
                self._post.report(done, None)
            except OSError:
                pass  # the code closed the mailbox
        return None

    def _fits(self) -> bool:
        """Whether a checkpoint would have all threads, and be small enough."""
        if _thread._count():
            return False
        memory, threads = _memory_and_threads()
        return memory <= self._most_bytes and not (self._unforkable and threads > 1)

    def _make(self, done: int, spare: Sequence[int]) -> bool | list[int]:
        """Makes a checkpoint. Returns whether there is one; in the checkpoint, what `take` returns there."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            registered, confirm = os.pipe()  # the checkpoint confirms its registration through this pipe
            random_state = _random_state()
            handler = _signal.getsignal(_SIGCHLD)
            _signal.signal(_SIGCHLD, _signal.SIG_DFL)
            mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_SIGINT,))
            self._tree.pass_on_orphans(True)
            middle = -1
            try:
                middle = fork_twice(lambda: _wait_in_middle_process(confirm))
                if middle == 0:
                    try:
                        os.setsid()
                        _signal.signal(_SIGINT, _signal.SIG_IGN)
                        ours.close()
                        self._post.close()
                        for fd in (registered, *spare):
                            os.close(fd)
                        if random_state is not None:
                            sys.modules["random"].setstate(random_state)
                        return self._sleep(theirs, confirm)
                    except BaseException:
                        os._exit(70)
                os.close(confirm)
                confirm = -1
                if _memory_and_threads()[1] > 1:  # the checkpoint lacks these threads
                    self._unforkable = True
                    return False
                self._post.report(done, ours)
                poll = select.poll()
                poll.register(registered, select.POLLIN)
                # An unregistered checkpoint would be killed as a leftover if the worker ended now.
                return bool(poll.poll(_REGISTRATION)) and os.read(registered, 1) == Mailbox.REGISTER
            finally:
                if middle:
                    for fd in (registered, confirm):
                        if fd >= 0:
                            os.close(fd)
                    if middle > 0:
                        kill(middle, _signal.SIGKILL)
                        os.waitpid(middle, 0)
                self._tree.pass_on_orphans(False)
                _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
                if handler is not None:
                    _signal.signal(_SIGCHLD, handler)

    def _sleep(self, mailbox: socket.socket, confirm: int) -> list[int]:
        """In the checkpoint: sleeps until it becomes the worker, or ends the process.

        Args:
            mailbox: its mailbox.
            confirm: a descriptor of a pipe to the worker, which waits there until the checkpoint is registered.

        Returns:
            See `take`.
        """
        middle = os.getppid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        mailbox.sendall(Mailbox.REGISTER)
        if not mailbox.recv(1):
            os._exit(0)
        os.write(confirm, Mailbox.REGISTER)
        os.close(confirm)
        _close_pipes_and_sockets(mailbox.fileno())
        while True:
            said, fds = receive_fds(mailbox, 1, _DESCRIPTORS)
            if said == Mailbox.CLEAR:
                while os.getppid() == middle:  # the worker ended before it could kill the middle process
                    kill(middle, _signal.SIGKILL)
                    time.sleep(0.0002)
                self._tree.kill_what_only_a_checkpoint_finds()
                mailbox.sendall(Mailbox.CLEAR)
            elif said == Mailbox.RESUME and len(fds) == _DESCRIPTORS:
                self._post.join(fds[0])
                self._tree.set_up_resumed()
                return fds[1:]
            else:
                os._exit(0)


def _wait_in_middle_process(confirm: int) -> None:
    """The middle process of the double fork. The worker kills it when the fork server has registered the checkpoint: an
    unregistered child of the fork server would be killed as a leftover."""
    os.close(confirm)
    libc.pause()


def _random_state() -> Any:
    """The state of `random`. Python seeds it anew in a forked child, so the checkpoint sets it again."""
    try:
        return sys.modules["random"].getstate()
    except (KeyError, AttributeError):
        return None


def _memory_and_threads() -> tuple[int, int]:
    """Bytes of memory of this process, without files, and the number of its threads."""
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY)
        try:
            lines = os.read(fd, 4096).split(b"\n")
        finally:
            os.close(fd)
    except OSError:  # no /proc
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, 1
    words = {line[:8]: line.split()[1] for line in lines if line.startswith((b"RssAnon:", b"Threads:"))}
    return int(words[b"RssAnon:"]) << 10, int(words[b"Threads:"])


def _close_pipes_and_sockets(mailbox: int) -> None:
    """Closes the checkpoint's copies of all pipes and sockets but the mailbox. While a copy is open, a process at the other end
    does not see that the worker closed its own. The descriptors become ends of a dead socket: when the checkpoint becomes
    the worker, the processes at the other ends have ended anyway."""
    dead, end = socket.socketpair()
    end.close()
    with dead:
        for fd in _descriptors():
            if fd <= 2 or fd in (mailbox, dead.fileno()):
                continue
            try:
                mode = os.fstat(fd).st_mode
                if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                    os.dup2(dead.fileno(), fd, os.get_inheritable(fd))
            except OSError:
                pass  # the descriptor is closed


def _descriptors() -> Iterable[int]:
    """The open descriptors of this process, or all numbers that they can have."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
