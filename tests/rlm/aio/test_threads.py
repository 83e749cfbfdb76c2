"""Threads for functions that block."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rlm.aio.threads import Threads


async def test_threads_are_reused_and_bounded() -> None:
    threads = Threads(2)
    seen: set[str] = set()
    lock, most, now = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
            seen.add(str(threading.get_ident()))
        for _ in range(1000):
            pass
        with lock:
            now -= 1

    for _ in range(20):
        await threads.run(work)
    await asyncio.gather(*(threads.run(work) for _ in range(200)))
    assert most <= 2
    assert len(seen) <= 2


async def test_threads_pass_on_results_errors_and_context_variables() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    threads = Threads(2)
    assert await threads.run(variable.get) == 5
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)


async def test_a_function_that_never_returns_does_not_count_once_it_is_cancelled() -> None:
    threads, leave = Threads(1), threading.Event()
    loop = asyncio.get_running_loop()
    for _ in range(3):
        entered = asyncio.Event()

        def stay(entered: asyncio.Event = entered) -> None:
            loop.call_soon_threadsafe(entered.set)
            leave.wait(30)

        stuck = asyncio.create_task(threads.run(stay))
        await entered.wait()
        waiting = asyncio.create_task(threads.run(lambda: "done"))
        skipped = asyncio.create_task(threads.run(lambda: "never"))
        await asyncio.sleep(0)
        skipped.cancel()
        stuck.cancel()
        assert await waiting == "done"
    leave.set()


def test_a_function_may_outlive_the_event_loop_of_its_caller() -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()
    threads = Threads(1)

    def stay() -> None:
        entered.set()
        leave.wait(30)
        left.set()

    async def main() -> None:
        task = asyncio.create_task(threads.run(stay))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()

    asyncio.run(main())
    leave.set()
    assert left.wait(30)
    assert asyncio.run(_one(threads, lambda: 7)) == 7


async def _one(threads: Threads, function: Callable[[], Any]) -> Any:
    return await threads.run(function)
