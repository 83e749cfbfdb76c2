"""Reads the inputs of a map one by one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

from rlm.cancellation import CancelToken
from rlm.errors import CancellationError

_END = object()


async def read(inputs: Iterable[Any] | AsyncIterable[Any], cancel: CancelToken | None) -> AsyncGenerator[Any]:
    """Yields the inputs, and reads each only when it is requested. Ends after the last input. When `cancel` is cancelled,
    it ends without waiting for an input that has not arrived. The source is not closed: it belongs to the caller.

    Args:
        inputs: an async iterable; a list or tuple; or another iterable, which is read in a thread of its own, because it may
            block (on a line of stdin, or a page of a database).

    Raises:
        Exception: an exception of the source.
        CancellationError: the source raised `asyncio.CancelledError` without having been cancelled.
    """
    cancel = cancel or CancelToken()
    if isinstance(inputs, list | tuple):
        for given in inputs:
            if cancel.cancelled:
                return
            yield given
        return
    source = aiter(inputs) if isinstance(inputs, AsyncIterable) else _ThreadedSource(inputs)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        loop.call_soon_threadsafe(stopped.set)

    try:
        with cancel.calling(stop):
            while not cancel.cancelled and (given := await _next(source, stopped)) is not _END:
                yield given
    finally:
        if isinstance(source, _ThreadedSource):
            source.end()


async def _next(source: AsyncIterator[Any], stopped: asyncio.Event) -> Any:
    """The next input; `_END` if there is none, or if the map is stopped before it arrives."""

    async def take() -> Any:
        return await anext(source, _END)

    tasks = [asyncio.ensure_future(take()), asyncio.ensure_future(stopped.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return _END
        if tasks[0].cancelled():
            raise CancellationError("the source of the inputs was cancelled, but not by the map")
        return tasks[0].result()
    finally:
        waiting = [task for task in tasks if task.cancel()]
        if waiting:  # lets the source clean up before the map continues
            await asyncio.wait(waiting)


class _ThreadedSource:
    """Reads an iterable in a thread. The thread is always the same one: some sources belong to the thread that first read them.
    It is a daemon: a thread that waits for an item cannot be stopped."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        self._inputs = inputs
        self._loop = asyncio.get_running_loop()
        self._asked: queue.SimpleQueue[asyncio.Future[Any] | None] = queue.SimpleQueue()
        variables = contextvars.copy_context()
        threading.Thread(target=variables.run, args=(self._serve,), name="rlm-inputs", daemon=True).start()

    def __aiter__(self) -> _ThreadedSource:
        return self

    async def __anext__(self) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._asked.put(answer)
        given = await answer
        if given is _END:
            raise StopAsyncIteration
        return given

    def end(self) -> None:
        """Ends the thread before its next item."""
        self._asked.put(None)

    def _serve(self) -> None:
        source: Iterator[Any] | None = None
        while (answer := self._asked.get()) is not None:
            given, error = _END, None
            try:
                source = iter(self._inputs) if source is None else source
                given = next(source)
            except StopIteration:
                pass
            except BaseException as failure:
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_settle, answer, given, error)


def _settle(answer: asyncio.Future[Any], given: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(given)
    else:
        answer.set_exception(error)
