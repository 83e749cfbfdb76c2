"""The fork server's side of checkpoints. `process/checkpoint.py` has a checkpoint's own side, and the protocol."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import socket
import struct
import time

from ..protocol.kinds import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CREDENTIALS = struct.Struct("3i")
_SCM_PIDFD = 4
_CLEAR_TIMEOUT = 5.0
"""Seconds that a checkpoint has to kill what its worker left."""


class CheckpointRegistry:
    """The checkpoints of all workers of a fork server, which knows nothing else of checkpoints. A worker has at most one, and
    it is named by the worker's process id.

    Args:
        watch: sets the function that is called when a descriptor becomes readable. None: no function any more.
        on_ready: called with a worker that has ended, when its checkpoint has killed the leftovers that it can find.
        on_lost: called with a worker that has ended, when its checkpoint ends too, or takes too long. It must call `drop`.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None] | None], None],
        on_ready: Callable[[int], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._watch, self._on_ready, self._on_lost = watch, on_ready, on_lost
        self._handles: dict[int, CheckpointHandle] = {}
        self._unidentified: set[int] = set()
        """The workers with a checkpoint whose process id is not known yet."""
        self._clearing: set[int] = set()
        """The workers whose checkpoint was asked to kill what its worker left."""

    def pids(self) -> list[int]:
        """The process ids of all checkpoints."""
        return [handle.pid for handle in self._handles.values()]

    def replace(self, worker: int, fds: list[int]) -> None:
        """Drops the checkpoint of a worker, and takes a new one.

        Args:
            fds: the mailbox of the new checkpoint, which is taken out of the list. Empty: there is no new one.
        """
        self.drop(worker)
        if fds:
            handle = self._handles[worker] = CheckpointHandle(fds.pop(0))
            self._unidentified.add(worker)
            self._watch(handle.fd, lambda: self._receive(worker, handle))

    def drop(self, worker: int) -> None:
        """Closes the mailbox of the checkpoint of a worker, if there is one. The checkpoint ends then."""
        handle = self._handles.pop(worker, None)
        if handle is not None:
            self._watch(handle.fd, None)
            handle.close()
            self._unidentified.discard(worker)
            self._clearing.discard(worker)

    def receive_registrations(self) -> None:
        """Receives the first message of each new checkpoint that has sent it. `pids` lacks a checkpoint until then, so it would
        be killed as a leftover."""
        for worker in list(self._unidentified):
            handle = self._handles.get(worker)
            if handle is not None:
                self._receive(worker, handle)

    def _receive(self, worker: int, handle: CheckpointHandle) -> None:
        cleared = handle.receive()
        if handle.pid:
            self._unidentified.discard(worker)
        if cleared is None:
            ended = handle.worker_ended
            self.drop(worker)
            if ended:
                self._on_lost(worker)
        elif cleared:
            handle.clear_deadline = None
            self._clearing.discard(worker)
            self._on_ready(worker)

    def on_worker_ended(self, worker: int) -> bool:
        """Asks the checkpoint of a worker that has ended to kill what the worker left.

        Returns:
            Whether there is a checkpoint. If so, `on_ready` or `on_lost` follows.
        """
        handle = self._handles.get(worker)
        if handle is None or not handle.ask_to_clear(time.monotonic() + _CLEAR_TIMEOUT):
            return False
        self._clearing.add(worker)
        return True

    def poll_timeouts(self) -> list[float]:
        """Milliseconds until each checkpoint takes too long to kill what its worker left. Calls `on_lost` for those that
        already do."""
        waits, now = [], time.monotonic()
        for worker in list(self._clearing):
            handle = self._handles.get(worker)  # none if an earlier `on_lost` ended this tree too
            deadline = handle.clear_deadline if handle is not None else None
            if deadline is None:
                self._clearing.discard(worker)
            elif deadline > now:
                waits.append((deadline - now) * 1000 + 1)
            else:
                self._clearing.discard(worker)
                self._on_lost(worker)
        return waits

    def resume(self, worker: int, fds: Sequence[int]) -> tuple[int, int] | None:
        """Makes the checkpoint of a worker that has ended the worker, and removes it from the registry.

        Args:
            fds: the descriptors that a worker needs.

        Returns:
            The new worker's process id, and a pidfd, which the caller must close. None: there is no checkpoint.
        """
        handle = self._handles.get(worker)
        if handle is None:
            return None
        pidfd = handle.resume(fds)
        if pidfd < 0:
            return None
        self.drop(worker)
        return handle.pid, pidfd


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
        self.worker_ended = False
        """Whether its worker has ended."""
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
            elif kind in (socket.SCM_RIGHTS, _SCM_PIDFD):  # descriptors that the code of a cell sent
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
        self.worker_ended = True
        self.clear_deadline = deadline
        return True

    def resume(self, fds: Sequence[int]) -> int:
        """Tells the checkpoint to become the worker.

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
