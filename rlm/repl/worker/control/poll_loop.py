"""Waiting for descriptors and for moments, in one thread."""

from __future__ import annotations

import errno
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.POLLIN, select.POLLOUT
_PIECE = 1 << 16


class Loop:
    """Calls who waits for a descriptor or a moment."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._alarms: dict[object, tuple[float, Callable[[], None]]] = {}
        self._ended = False

    def watch(self, fd: int, mask: int, handler: Callable[[int], object]) -> None:
        """Has `handler` called with the events of a descriptor.

        Args:
            mask: `READ`, `WRITE` or both; 0: never any more.
        """
        if mask:
            self._handlers[fd] = handler
        else:
            self._handlers.pop(fd, None)
        if self._masks.get(fd, 0) == mask:
            return
        if mask:
            self._poll.register(fd, mask)
            self._masks[fd] = mask
        elif self._masks.pop(fd, 0):
            self._poll.unregister(fd)

    def alarm(self, whose: object, seconds: float | None, action: Callable[[], None]) -> None:
        """Has `action` called once, in some seconds; never if None. Everybody has one alarm."""
        if seconds is None:
            self._alarms.pop(whose, None)
        else:
            self._alarms[whose] = time.monotonic() + seconds, action

    def end(self) -> None:
        """Has `run` come to its end."""
        self._ended = True

    def run(self) -> None:
        """Serves until `end` is called."""
        while not self._ended:
            for fd, events in self._poll.poll(self._patience()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler(events)
            if self._alarms:
                self._ring()

    def _patience(self) -> float | None:
        if not self._alarms:
            return None
        due = min(due for due, _ in self._alarms.values())
        return float(max(0.0, (due - time.monotonic()) * 1000 + 1))

    def _ring(self) -> None:
        now = time.monotonic()
        for whose, (due, action) in list(self._alarms.items()):
            if due <= now and self._alarms.pop(whose, None) is not None:
                action()


class Outbox:
    """Bytes for a descriptor that takes them when it can.

    Args:
        fd: the descriptor, which does not block and is closed by `close`.
        handler: is called for whatever else happens on it, if it is to be read too.
    """

    def __init__(self, loop: Loop, fd: int, handler: Callable[[int], object] | None) -> None:
        self._loop, self._fd, self._handler = loop, fd, handler
        self._buffer = bytearray()
        self._closing = False
        self.gone = False
        """Whether nobody takes them any more."""
        self._watch()

    def send(self, data: bytes) -> None:
        self._buffer += data
        self.flush()

    def flush(self) -> None:
        """Writes what goes out at once and waits for the rest."""
        try:
            while self._buffer:
                with memoryview(self._buffer) as view:
                    count = os.write(self._fd, view[: 1 << 20])
                del self._buffer[:count]
        except BlockingIOError:
            pass
        except OSError:
            self._buffer.clear()
            self.gone = True
        self._watch()

    def close(self) -> None:
        """Closes the descriptor as soon as everything has been taken."""
        self._handler, self._closing = None, True
        self.flush()

    def _watch(self) -> None:
        if self._closing and not self._buffer:
            self._loop.watch(self._fd, 0, self._happened)
            os.close(self._fd)
            return
        mask = (READ if self._handler is not None else 0) | (WRITE if self._buffer else 0)
        self._loop.watch(self._fd, mask, self._happened)

    def _happened(self, events: int) -> None:
        if events & WRITE:
            self.flush()
        if events & ~WRITE and self._handler is not None:
            self._handler(events)


def read(fd: int) -> bytes | None:
    """What can be read at once; b"" at the end of the stream, None if there is nothing yet."""
    try:
        return os.read(fd, _PIECE)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.ECONNRESET, errno.EIO, errno.EBADF):
            return b""
        raise
