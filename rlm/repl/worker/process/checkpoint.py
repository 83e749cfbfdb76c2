"""Checkpoints: a fork of the worker, made between two cells, that sleeps. When the worker ends in the next cell, it goes on
in its place, with the namespace as it was before. Linux only.

The worker makes it, and a pair of sockets. One is the checkpoint's mailbox; the other one goes by way of the supervisor to
the warm parent. There the checkpoint says that it is there, and is told that this is known. When the worker has ended, it is
asked to clear up what the worker left, and says when that is done; and it is given new descriptors, as a fresh worker gets
them. The end of its mailbox is its own end. `control/checkpoint_handle.py` has the other side.
"""

# Few imports, as each costs memory in every REPL: no pathlib, no contextlib.
# ruff: noqa: PTH208, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import os
import resource
import select
import socket
import stat
import struct
import sys
import time

from ..protocol.kinds import Mailbox
from .processes import LINUX, fork_twice, kill, libc, move_high, receive_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from ..control.process_trees import ProcessTrees

SAVED = struct.Struct(">cQ")
"""What a worker tells its supervisor: `Mailbox.CHECKPOINT`, with one end of a mailbox, and how much of the work was done by
then; or `Mailbox.NO_CHECKPOINT`."""
DESCRIPTORS = 4
"""What a checkpoint is given: the worker's stream to the supervisor, stdout, stderr, and the memory for what it prints."""

_PATIENCE = 10_000
"""Milliseconds in which the warm parent must have heard of a checkpoint."""
_SIGINT, _SIGCHLD = int(_signal.SIGINT), int(_signal.SIGCHLD)


class Checkpoints:
    """Those of one worker, of which there is never more than one.

    Args:
        post: a descriptor of the stream from and to the supervisor.
        trees: those of the warm parent.
    """

    def __init__(self, post: int, trees: ProcessTrees) -> None:
        self._take(post)
        self._trees = trees
        self._stubborn = False
        """After a fork there were threads still, of a library that does not expect one."""
        self.most_bytes = 0
        """Memory that a worker may have to be worth one; 0: none are wanted."""
        self.seconds = 0.0
        """What the last one took."""

    def _take(self, post: int) -> None:
        self._post = socket.socket(fileno=move_high(post))
        os.close(post)

    def enlist(self, most: int) -> list[int]:
        """Waits for the descriptors of the worker's stream and of files with its contexts. Ends us if there will be none."""
        data, fds = receive_fds(self._post, 1, most)
        if not data:
            os._exit(0)  # nobody needed us
        return fds

    def take(self, done: int, spare: Sequence[int]) -> list[int] | None:
        """Makes a checkpoint, if it is wanted and can be had, in place of the last one. From the main thread, between cells.

        Args:
            done: how much of the work is done.
            spare: descriptors that the checkpoint has no use for.

        Returns:
            None in the worker; in the checkpoint, once the worker has ended and it is to be the worker: descriptors of its
            stdout and stderr, and of the memory for what it prints.
        """
        if not self.most_bytes or not LINUX or libc is None:
            return None
        made: bool | list[int] = False
        started = time.monotonic()
        try:
            if self._fits():
                made = self._make(done, spare)
        except OSError:
            pass  # there can be no more processes or descriptors
        self.seconds = time.monotonic() - started
        if isinstance(made, list):
            self.seconds = 0.0  # it slept most of that
            return made
        if not made:
            try:
                self._post.sendall(SAVED.pack(Mailbox.NO_CHECKPOINT, done))
            except OSError:
                pass  # the code closed it
        return None

    def _fits(self) -> bool:
        """Whether a fork would be whole and is affordable."""
        if _thread._count():
            return False
        memory, threads = _memory_and_threads()
        return memory <= self.most_bytes and not (self._stubborn and threads > 1)

    def _make(self, done: int, spare: Sequence[int]) -> bool | list[int]:
        """Whether there is one; in the checkpoint, what `take` returns there."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            told, tell = os.pipe()
            chance = _chance()
            handler = _signal.getsignal(_SIGCHLD)
            _signal.signal(_SIGCHLD, _signal.SIG_DFL)
            mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, (_SIGINT,))
            self._trees.pass_on_orphans(True)
            middle = -1
            try:
                middle = fork_twice(lambda: _hold(tell))
                if middle == 0:
                    try:
                        os.setsid()
                        _signal.signal(_SIGINT, _signal.SIG_IGN)
                        for fd in (told, ours.detach(), self._post.detach(), *spare):
                            os.close(fd)
                        if chance is not None:
                            sys.modules["random"].setstate(chance)
                        return self._sleep(theirs, tell)
                    except BaseException:
                        os._exit(70)
                os.close(tell)
                tell = -1
                if _memory_and_threads()[1] > 1:
                    self._stubborn = True
                    return False
                socket.send_fds(self._post, [SAVED.pack(Mailbox.CHECKPOINT, done)], [ours.fileno()])
                poll = select.poll()
                poll.register(told, select.POLLIN)
                # If the worker ended before that is known, its checkpoint would be taken for something that it left.
                return bool(poll.poll(_PATIENCE)) and os.read(told, 1) == Mailbox.HERE
            finally:
                if middle:
                    for fd in (told, tell):
                        if fd >= 0:
                            os.close(fd)
                    if middle > 0:
                        kill(middle, _signal.SIGKILL)
                        os.waitpid(middle, 0)
                self._trees.pass_on_orphans(False)
                _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
                if handler is not None:
                    _signal.signal(_SIGCHLD, handler)

    def _sleep(self, mailbox: socket.socket, tell: int) -> list[int]:
        """In the checkpoint: waits until it is needed, and ends us if it is not."""
        middle = os.getppid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        mailbox.sendall(Mailbox.HERE)
        if not mailbox.recv(1):
            os._exit(0)
        os.write(tell, Mailbox.HERE)
        os.close(tell)
        _sever(mailbox.fileno())
        while True:
            said, fds = receive_fds(mailbox, 1, DESCRIPTORS)
            if said == Mailbox.CLEAR:
                while os.getppid() == middle:  # the worker ended before it ended that
                    kill(middle, _signal.SIGKILL)
                    time.sleep(0.0002)
                self._trees.kill_what_only_a_checkpoint_finds()
                mailbox.sendall(Mailbox.CLEAR)
            elif said == Mailbox.RISE and len(fds) == DESCRIPTORS:
                self._take(fds[0])
                self._trees.set_up_resumed()
                return fds[1:]
            else:
                os._exit(0)


def _hold(tell: int) -> None:
    """Between a worker and its checkpoint: waits until the worker ends us, as the checkpoint is known then. Before, it must not
    be the child of whoever ends what workers leave."""
    os.close(tell)
    libc.pause()


def _chance() -> Any:
    """The state of `random`, which a fork would change."""
    try:
        return sys.modules["random"].getstate()
    except (KeyError, AttributeError):
        return None


def _memory_and_threads() -> tuple[int, int]:
    """Bytes of memory that are ours alone, or shared with forks; and how many threads we have."""
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


def _sever(mailbox: int) -> None:
    """Gives up all pipes and sockets: who is at their other ends is to hear it when the worker closes its own. They look as
    if the process there had ended, which will be so when we need them."""
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
                pass  # there is none


def _descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
