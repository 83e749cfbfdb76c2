"""The worker's end of the stream to the host."""

# ruff: noqa: SIM105 (no contextlib)

from __future__ import annotations

import _thread
import itertools
import marshal
import os
import re
import select
from collections import deque

from ..protocol.frames import NUMBER, Frames, pack, write_all
from ..protocol.kinds import FromWorker, ToWorker
from ..protocol.messages import TooLargeError, dump
from ..protocol.tool_values import to_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_READ = 1 << 16
_SIZED = frozenset((str, list, dict))


class _Ticket:
    """A thread that waits for a frame."""

    __slots__ = ("done", "reply", "signal")

    def __init__(self) -> None:
        self.done = False
        self.reply: Any = None
        self.signal = _thread.allocate_lock()
        self.signal.acquire()

    def wake(self) -> None:
        try:
            self.signal.release()
        except RuntimeError:
            pass  # it is awake


def _unfit(error: TypeError) -> str:
    """What of a prompt is no JSON."""
    found = re.match(r"Object of type (\w+)", str(error))
    what = f"cannot hold {found[1]}" if found else f"cannot be sent ({error})"
    return f"a prompt {what}: give text, a list of texts and images, or a list of messages"


class Channel:
    """The worker's end of the stream to the host. Threads of the code share it: of those that wait, one reads
    for all, and hands that over when it has what it wants. So there is no thread of ours.

    An interrupt may come at any time, but only in the main thread, and only `Worker.on_interrupt` raises it. It does
    not while `guarded` is set, so that no frame is ever cut; then it sets `deferred`, and the main thread raises it as
    soon as it may.
    """

    def __init__(self, fd: int) -> None:
        self._numbers = itertools.count(1)
        self._cell = 0
        self.join(fd)

    def join(self, fd: int) -> None:
        """Begins, in the main thread and with no other; or begins anew with another stream."""
        self._fd = fd
        self._main = _thread.get_ident()
        self._frames = Frames()
        self._reading = _thread.allocate_lock()
        self._sending = _thread.allocate_lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._tickets: dict[int, _Ticket] = {}
        self._tasks: deque[dict[str, Any]] = deque()
        self._void = 0
        """The cell that is being interrupted."""
        self.guarded = True
        self.waiting = False
        """The main thread waits inside a query; an interrupt ends the wait and sets `guarded` in the same moment."""
        self.deferred = False
        self.told = False
        """The main thread heard of the interrupt of its cell from a query that failed."""

    def send(self, kind: bytes, message: Any) -> None:
        """From the main thread, guarded."""
        data = pack(kind, dump(message))
        try:
            with self._sending:
                write_all(self._fd, data)
        except OSError:
            self._lost()

    def _lost(self) -> NoReturn:
        """The code closed our descriptor, or the host is gone."""
        os._exit(71)

    def next(self) -> dict[str, Any]:
        """Waits for what is to be done next: the namespace, then cells. From the main thread, guarded."""
        ticket = self._tickets[0] = _Ticket()
        self._wait(ticket, lambda: bool(self._tasks), False)
        del self._tickets[0]
        task = self._tasks.popleft()
        self._cell = task.get("id", self._cell)
        return task

    def idle(self, seconds: float) -> bool:
        """Whether nothing is to be done for some time. From the main thread, guarded, with no other."""
        return not self._tasks and not self._poll.poll(seconds * 1000)

    def request(self, kind: bytes, message: dict[str, Any]) -> _Ticket:
        """Asks the host for something, and does not wait. From the main thread, guarded."""
        number = next(self._numbers)
        ticket = self._tickets[number] = _Ticket()
        self.send(kind, {"id": number, **message})
        return ticket

    def reply(self, ticket: _Ticket) -> Any:
        """Waits for what was requested."""
        self._wait(ticket, lambda: ticket.done, False)
        return marshal.loads(ticket.reply)

    def ask(self, query: dict[str, Any]) -> list[Any]:
        """Sends a query and returns its replies, each [text, failed]. From any thread.

        Raises:
            KeyboardInterrupt: the cell was interrupted.
            ValueError: there is too much in the query, or it is nested too deep.
            TypeError: it holds something that is no str, number, list, dict, bool or None.
            RuntimeError: this is a forked child process.
        """
        number = next(self._numbers)
        try:
            prompts = query["prompts"]
            size = sum(map(len, prompts)) if _SIZED.issuperset(map(type, prompts)) else 0
            payload = dump({"id": number, **query}, size)
        except TypeError as error:
            raise TypeError(_unfit(error)) from None
        except TooLargeError as most:
            raise ValueError(
                f"the prompts of one call may have {most} together, and these have more: send fewer at a time"
            ) from None
        replies: list[Any] = self._exchange(FromWorker.QUERY, number, payload)
        return replies

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
        """Calls a tool. From any thread.

        Returns:
            None and the result; or the name of the exception's type, and its message.

        Raises:
            KeyboardInterrupt, RuntimeError: see `ask`.
            TypeError: the arguments hold something that cannot be sent.
            ValueError: they are too large, or nested too deep.
        """
        given = [
            [to_json(value, f"argument {place} of {name}()") for place, value in enumerate(args, 1)],
            {key: to_json(value, f"argument {key!r} of {name}()") for key, value in kwargs.items()},
        ]
        number = next(self._numbers)
        try:
            payload = dump([name, *given])
        except TooLargeError as most:
            raise ValueError(
                f"the arguments of {name}() may have {most} together, and these have more: send less at a time"
            ) from None
        outcome: tuple[str | None, Any] = marshal.loads(
            self._exchange(FromWorker.CALL, number, NUMBER.pack(number) + payload)
        )
        return outcome

    def _exchange(self, kind: bytes, number: int, payload: bytes) -> Any:
        """Sends a frame and waits for the reply to it."""
        if self._fd < 0:
            raise RuntimeError(
                "sub-models and tools can be asked from the REPL's own process only: use threads instead"
            )
        main = _thread.get_ident() == self._main
        if self._void == self._cell:
            self.told |= main
            raise KeyboardInterrupt
        data = pack(kind, payload)
        if main:
            self.guarded = True
        try:
            ticket = self._tickets[number] = _Ticket()
            if main and self.deferred:
                raise KeyboardInterrupt
            with self._sending:
                write_all(self._fd, data)
            self._wait(ticket, lambda: ticket.done, main)
        finally:
            self._tickets.pop(number, None)
            if main:
                self.guarded = False
                if self.deferred:
                    self.deferred = False
                    raise KeyboardInterrupt
        if ticket.reply is None:
            self.told |= main
            raise KeyboardInterrupt
        return ticket.reply

    def _wait(self, ticket: _Ticket, done: Callable[[], bool], interruptible: bool) -> None:
        while not done():
            if self._reading.acquire(False):
                try:
                    while not done():
                        self._read(interruptible)
                finally:
                    self._reading.release()
                    for other in list(self._tickets.values()):
                        if other is not ticket:
                            other.wake()
                            break
            else:
                self._block(ticket.signal.acquire, interruptible)

    def _block(self, wait: Callable[[], Any], interruptible: bool) -> None:
        """Waits where an interrupt does no harm."""
        if not interruptible:
            wait()
            return
        self.waiting = True
        self.guarded = False
        if self.deferred:
            self.guarded = True
            raise KeyboardInterrupt
        wait()
        self.guarded = True
        self.waiting = False

    def _read(self, interruptible: bool) -> None:
        if interruptible:
            self._block(self._poll.poll, True)
        try:
            data = os.read(self._fd, _READ)
        except OSError:
            data = b""
        if not data:
            self._lost()
        self._frames.feed(data)
        while True:
            frame = self._frames.next()
            if frame is None:
                return
            self._dispatch(*frame)

    def _dispatch(self, kind: bytes, payload: bytes) -> None:
        if kind == ToWorker.REPLIES:
            message = marshal.loads(payload)
            self._settle(message["id"], message["replies"])
        elif kind == ToWorker.VALUE:
            self._settle(NUMBER.unpack_from(payload)[0], payload[NUMBER.size :])
        elif kind == ToWorker.VOID:
            self._void = marshal.loads(payload)["id"]
            for number, ticket in list(self._tickets.items()):
                if number:
                    ticket.done = True
                    ticket.wake()
        else:
            self._tasks.append(marshal.loads(payload))
            waiting = self._tickets.get(0)
            if waiting is not None:
                waiting.wake()

    def _settle(self, number: int, reply: Any) -> None:
        ticket = self._tickets.pop(number, None)
        if ticket is not None:
            ticket.reply = reply
            ticket.done = True
            ticket.wake()

    def leave(self) -> None:
        """In a forked child: gives the channel up."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
