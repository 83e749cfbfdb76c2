"""One event loop in a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines from any thread. Starts at first use, and lives as long as the process, so that connections outlive
    a call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs `coroutine` to its end. A KeyboardInterrupt cancels it, waits for its clean-up, and is raised again."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            self._settle()
            raise

    def close(self) -> None:
        """Stops the loop, after its tasks have been cancelled and its connections closed."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            # A fork copies the loop but not its thread: the child needs its own.
            if self._loop is None or self._pid != os.getpid():
                started = threading.Event()
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop, started), name="rlm-loop", daemon=True)
                thread.start()
                started.wait()
                self._loop, self._thread, self._pid = loop, thread, os.getpid()
            return self._loop

    def _settle(self) -> None:
        """Waits until what was cancelled so far has cleaned up after itself: a future is done as soon as it is
        cancelled, its task only later."""

        async def others() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            pending = [task for task in tasks if task.cancelling()]
            if pending:
                await asyncio.wait(pending)

        asyncio.run_coroutine_threadsafe(others(), self._running_loop()).result()


def _serve(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


background = BackgroundLoop()
"""The loop of this process."""

atexit.register(background.close)
