"""One event loop in a thread of its own, for callers without an event loop."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from rlm.errors import ConfigError

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for callers in any thread. The loop starts at first use and runs until the process ends, so that
    connections outlive a call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None
        self._pid = 0

    def run(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine to its end. If a signal handler raises meanwhile (KeyboardInterrupt, or the time limit of a task
        queue), the coroutine is cancelled, its clean-up is awaited, and then the exception is raised.

        Args:
            begin: makes the coroutine. It is called on the loop, so that every coroutine that is made is also awaited.

        Raises:
            ConfigError: the caller runs on the loop's own thread, which cannot wait for itself.
            BaseException: the exception of the coroutine.
        """
        if self._thread is threading.current_thread() and self._pid == os.getpid():
            raise ConfigError(
                "this code runs on rlm's own event loop, which completion() and map() would wait for: use "
                "await acompletion() or amap(), or a plain function where this is an async tool"
            )
        job = _LoopJob(begin)
        loop: asyncio.AbstractEventLoop | None = None
        try:
            loop = self._running_loop()
            loop.call_soon_threadsafe(job.start)
            return job.outcome.result()
        except BaseException:
            if loop is not None and not job.over:
                loop.call_soon_threadsafe(job.abandon)
                job.wait()
            raise
        finally:
            del job  # the traceback of the job's exception refers to this frame, and would keep everything that the run held

    def close(self) -> None:
        """Cancels the tasks of the loop, closes its connections, and stops it."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive() and self._pid == os.getpid():
            loop = thread.loop()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A fork copies the loop but not its thread: a child process needs a loop of its own.
            if self._thread is None or not self._thread.is_alive() or self._pid != os.getpid():
                self._thread, self._pid = _LoopThread(), os.getpid()
                self._thread.start()
            return self._thread.loop()


class _LoopThread(threading.Thread):
    """Makes the loop and runs it. Signal handlers run in the main thread, so none can interrupt the making of the loop."""

    def __init__(self) -> None:
        super().__init__(name="rlm-loop", daemon=True)
        self._made: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Waits for the loop and returns it.

        Raises:
            OSError: the system refused to make a loop.
        """
        return self._made.result()

    def run(self) -> None:
        try:
            loop = asyncio.new_event_loop()
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(loop)
        _serve(loop)


class _LoopJob(Generic[T]):
    """A coroutine on the loop, and its outcome for the thread that waits for it."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._begin = begin
        self._task: asyncio.Task[T] | None = None
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    @property
    def over(self) -> bool:
        return self.outcome.done()

    def wait(self) -> None:
        """Waits for the end, with a result, an exception or a cancellation."""
        with contextlib.suppress(concurrent.futures.CancelledError):
            self.outcome.exception()

    def start(self) -> None:
        """Starts the coroutine. Call it on the loop."""
        if not self.over:
            self._task = asyncio.get_running_loop().create_task(_run(self._begin))
            self._task.add_done_callback(self._end)

    def abandon(self) -> None:
        """Cancels the coroutine, also before it has started. Call it on the loop."""
        if self._task is not None:
            self._task.cancel()
        else:
            self.outcome.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


async def _run(begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await begin()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    stopped = False
    while not stopped:
        # asyncio passes these exceptions to the caller that awaits the task, and also stops the loop. This loop runs on,
        # because it serves other callers too.
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
            stopped = True
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


background = BackgroundLoop()
"""The loop of this process."""

atexit.register(background.close)
