"""Threads for functions that block: tools that are not coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_IDLE_SECONDS = 10.0
"""Seconds without work after which a thread ends."""


class Threads:
    """Runs functions in at most `most` threads. A thread starts when it is needed, and ends after 10 seconds without work.

    The threads are daemons, and a thread whose caller no longer waits is not counted. So a function that never returns blocks
    neither other functions nor the end of the program. With a `ThreadPoolExecutor` it would block both.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[_ThreadJob] = deque()
        self._threads = 0
        self._idle = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Calls `function` in a thread, with a copy of the caller's context variables, and returns its result.

        Raises:
            Exception: the exception of the function. The function must raise neither StopIteration nor a BaseException that is
                no Exception.
        """
        job = _ThreadJob(function)
        with self._changed:
            self._jobs.append(job)
            self._ensure_thread()
        try:
            return await job.result
        finally:
            with self._changed:
                job.abandoned = True
                if job.running:
                    self._threads -= 1
                    self._ensure_thread()

    def _ensure_thread(self) -> None:
        """Wakes or starts a thread for the newest job, if the limit allows it."""
        if self._idle >= len(self._jobs):
            self._changed.notify()
        elif self._jobs and self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._serve, name="rlm-tool", daemon=True).start()

    def _serve(self) -> None:
        with self._changed:
            while (job := self._take()) is not None:
                job.running = True
                self._changed.release()
                try:
                    job.run()
                finally:
                    self._changed.acquire()
                    job.running = False
                if job.abandoned:
                    return
                job.post()
            self._threads -= 1

    def _take(self) -> _ThreadJob | None:
        """The next job; None after `_IDLE_SECONDS` without one."""
        while True:
            while self._jobs:
                job = self._jobs.popleft()
                if not job.abandoned:
                    return job
            self._idle += 1
            news = self._changed.wait(_IDLE_SECONDS)
            self._idle -= 1
            if not news and not self._jobs:
                return None


class _ThreadJob:
    """A function to call, and the future that its caller awaits."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._variables = contextvars.copy_context()
        self._outcome: tuple[Any, Exception | None] = None, None
        self.result: asyncio.Future[Any] = self._loop.create_future()
        self.running = False
        self.abandoned = False
        """Whether the caller no longer waits."""

    def run(self) -> None:
        try:
            self._outcome = self._variables.run(self._function), None
        except Exception as error:
            self._outcome = None, error

    def post(self) -> None:
        """Gives the outcome to the caller, on its event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.result.done():
            return
        value, error = self._outcome
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)
