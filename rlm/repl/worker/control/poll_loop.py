"""A loop over `poll` for one thread: functions that are called when a descriptor is ready or a time has come."""

from __future__ import annotations

import errno
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.POLLIN, select.POLLOUT
_MOST_READ = 1 << 16
_MOST_WRITE = 1 << 20


class PollLoop:
    """Calls handlers of descriptors and of timers."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._timers: dict[object, tuple[float, Callable[[], None]]] = {}
        self._ended = False

    def watch(self, fd: int, mask: int, handler: Callable[[int], object]) -> None:
        """Sets the handler of a descriptor. It is called with the events of `poll`.

        Args:
            mask: `READ`, `WRITE`, or both.
        """
        self._handlers[fd] = handler
        if self._masks.get(fd) != mask:
            self._poll.register(fd, mask)
            self._masks[fd] = mask

    def unwatch(self, fd: int) -> None:
        """Removes the handler of a descriptor, if there is one. Called before the descriptor is closed."""
        self._handlers.pop(fd, None)
        if self._masks.pop(fd, 0):
            self._poll.unregister(fd)

    def set_timer(self, owner: object, seconds: float, action: Callable[[], None]) -> None:
        """Calls `action` once, after some seconds. Replaces the owner's last timer."""
        self._timers[owner] = time.monotonic() + seconds, action

    def cancel_timer(self, owner: object) -> None:
        """Removes the owner's timer, if there is one."""
        self._timers.pop(owner, None)

    def end(self) -> None:
        """Makes `run` return."""
        self._ended = True

    def run(self) -> None:
        """Calls handlers until `end` is called."""
        while not self._ended:
            for fd, events in self._poll.poll(self._timeout()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if self._timers:
                self._run_timers()

    def _timeout(self) -> float | None:
        """Milliseconds until the next timer. None: there is no timer."""
        if not self._timers:
            return None
        due = min(due for due, _ in self._timers.values())
        return float(max(0.0, (due - time.monotonic()) * 1000 + 1))

    def _run_timers(self) -> None:
        now = time.monotonic()
        for owner, (due, action) in list(self._timers.items()):
            if due <= now and self._timers.pop(owner, None) is not None:
                action()


class Outbox:
    """Bytes to write to a descriptor as fast as its reader takes them.

    Args:
        fd: a non-blocking descriptor. `close` closes it.
        on_readable: called when the descriptor becomes readable. None: it is not read.
    """

    def __init__(self, loop: PollLoop, fd: int, on_readable: Callable[[int], object] | None) -> None:
        self._loop, self._fd, self._on_readable = loop, fd, on_readable
        self._buffer = bytearray()
        self._closing = False
        self.broken = False
        """Whether a write has failed: nothing reads the bytes any more."""
        self._watch()

    def send(self, data: bytes) -> None:
        self._buffer += data
        self.flush()

    def flush(self) -> None:
        """Writes what can be written at once. The loop writes the rest."""
        try:
            while self._buffer:
                with memoryview(self._buffer) as view:
                    count = os.write(self._fd, view[:_MOST_WRITE])
                del self._buffer[:count]
        except BlockingIOError:
            pass
        except OSError:
            self._buffer.clear()
            self.broken = True
        self._watch()

    def close(self) -> None:
        """Closes the descriptor when everything has been written."""
        self._on_readable, self._closing = None, True
        self.flush()

    def _watch(self) -> None:
        if self._closing and not self._buffer:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            return
        mask = (READ if self._on_readable is not None else 0) | (WRITE if self._buffer else 0)
        if mask:
            self._loop.watch(self._fd, mask, self._on_ready)
        else:
            self._loop.unwatch(self._fd)

    def _on_ready(self, events: int) -> None:
        if events & WRITE:
            self.flush()
        if events & ~WRITE and self._on_readable is not None:
            self._on_readable(events)


def read(fd: int) -> bytes | None:
    """Reads from a descriptor without waiting. Returns b"" at the end of the stream, None if there is nothing yet."""
    try:
        return os.read(fd, _MOST_READ)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.ECONNRESET, errno.EIO, errno.EBADF):
            return b""
        raise
