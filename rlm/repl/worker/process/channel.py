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
    """The reply to a query or call, for which a thread waits. Number 0 is the next task, for which the main thread waits."""

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
            pass  # the thread is awake already


def _explain(error: TypeError) -> str:
    """Turns an error of `json` into one about a prompt."""
    found = re.match(r"Object of type (\w+)", str(error))
    what = f"cannot hold {found[1]}" if found else f"cannot be sent ({error})"
    return f"a prompt {what}: give text, a list of texts and images, or a list of messages"


class Channel:
    """The worker's end of the stream to the host.

    The threads of the code share the stream. One of the waiting threads reads the frames for all. When it has its own reply,
    it wakes another thread, which continues to read. So the worker needs no thread of its own.

    An interrupt may come at any time, but only in the main thread (`interrupts.Interrupts`). While `guarded` is set, an
    interrupt raises nothing, so no frame is ever cut. Instead the interrupt sets `deferred`, and the main thread raises
    KeyboardInterrupt at the end of the guarded part.
    """

    def __init__(self, fd: int) -> None:
        self._numbers = itertools.count(1)
        self._cell = 0
        """The number of the last cell."""
        self.join(fd)

    def join(self, fd: int) -> None:
        """Takes a stream, or replaces the stream by another one. Called in the main thread, while there is no other thread."""
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
        """The number of the cell for which `ToWorker.VOID` came. Its queries and calls get no reply."""
        self.guarded = True
        """While this is set, an interrupt raises nothing."""
        self.waiting = False
        """Whether the main thread waits for a reply. An interrupt ends the wait, and sets `guarded` at once."""
        self.deferred = False
        """Whether an interrupt came in a guarded part."""
        self.raised = False
        """Whether a query or call of the main thread has raised KeyboardInterrupt because of `ToWorker.VOID`."""

    def send(self, kind: bytes, message: Any) -> None:
        """Sends a message. From the main thread, guarded."""
        data = pack(kind, dump(message))
        try:
            with self._sending:
                write_all(self._fd, data)
        except OSError:
            self._on_stream_ended()

    def _on_stream_ended(self) -> NoReturn:
        """Called when the stream has ended: the code closed its descriptor, or the host is gone."""
        os._exit(71)

    def next(self) -> dict[str, Any]:
        """Waits for the next task: `ToWorker.OPEN`, then RUN or EXTEND. From the main thread, guarded."""
        ticket = self._tickets[0] = _Ticket()
        self._wait(ticket, lambda: bool(self._tasks), False)
        del self._tickets[0]
        task = self._tasks.popleft()
        self._cell = task.get("id", self._cell)
        return task

    def idle(self, seconds: float) -> bool:
        """Waits some seconds for a task. Returns whether none came. From the main thread, guarded, while it is the only one."""
        return not self._tasks and not self._poll.poll(seconds * 1000)

    def request(self, kind: bytes, message: dict[str, Any]) -> _Ticket:
        """Sends the host a request, and does not wait for the reply. From the main thread, guarded."""
        number = next(self._numbers)
        ticket = self._tickets[number] = _Ticket()
        self.send(kind, {"id": number, **message})
        return ticket

    def reply(self, ticket: _Ticket) -> Any:
        """Waits for the reply to a request."""
        self._wait(ticket, lambda: ticket.done, False)
        return marshal.loads(ticket.reply)

    def ask(self, query: dict[str, Any]) -> list[Any]:
        """Sends a query and returns its replies, each [text, failed]. From any thread.

        Raises:
            KeyboardInterrupt: the cell was interrupted.
            ValueError: the query is too large, or nested too deep.
            TypeError: a prompt holds something other than str, numbers, lists, dicts, bool and None.
            RuntimeError: this process is a child that the code forked.
        """
        number = next(self._numbers)
        try:
            prompts = query["prompts"]
            size = sum(map(len, prompts)) if _SIZED.issuperset(map(type, prompts)) else 0
            payload = dump({"id": number, **query}, size)
        except TypeError as error:
            raise TypeError(_explain(error)) from None
        except TooLargeError as most:
            raise ValueError(
                f"the prompts of one call may have {most} together, and these have more: send fewer at a time"
            ) from None
        replies: list[Any] = self._exchange(FromWorker.QUERY, number, payload)
        return replies

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
        """Calls a tool. From any thread.

        Returns:
            None and the result; or the name of the exception's type and its message.

        Raises:
            KeyboardInterrupt, RuntimeError: see `ask`.
            TypeError: an argument holds something that cannot be sent.
            ValueError: the arguments are too large, or nested too deep.
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
        """Sends a frame and waits for the reply. Returns its payload. From any thread."""
        if self._fd < 0:
            raise RuntimeError(
                "sub-models and tools can be asked from the REPL's own process only: use threads instead"
            )
        main = _thread.get_ident() == self._main
        if self._void == self._cell:
            self.raised |= main
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
            self.raised |= main
            raise KeyboardInterrupt
        return ticket.reply

    def _wait(self, ticket: _Ticket, done: Callable[[], bool], interruptible: bool) -> None:
        """Waits until `done()`. Reads frames for all threads, if no other thread does."""
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
        """Waits. If `interruptible`, an interrupt may end the wait: no frame is being read or written now."""
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
        """Waits for bytes, and handles the frames that have arrived in full."""
        if interruptible:
            self._block(self._poll.poll, True)
        try:
            data = os.read(self._fd, _READ)
        except OSError:
            data = b""
        if not data:
            self._on_stream_ended()
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
        """Gives a waiting thread its reply."""
        ticket = self._tickets.pop(number, None)
        if ticket is not None:
            ticket.reply = reply
            ticket.done = True
            ticket.wake()

    def leave(self) -> None:
        """Called in a child that the code forked. Closes its copy of the stream."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
