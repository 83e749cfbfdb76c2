"""The cache of contexts: each is made once, checked and shared, and the oldest are dropped."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rlm_train import ContextTaskData
from rlm_train.context_cache import ContextCache, shared_cache
from rlm_train.context_hash import ContextMismatchError


class Letters(ContextTaskData):
    """A context of one letter, many times."""

    letter: str
    copies: int = 1000

    def materialise(self) -> str:
        made.append(self.letter)
        if self.letter in faults:
            raise faults[self.letter]
        if (gate := gates.get(self.letter)) is not None:
            gate.wait(30)
        return self.letter * self.copies


made: list[str] = []
faults: dict[str, Exception] = {}
gates: dict[str, threading.Event] = {}


@pytest.fixture(autouse=True)
def clean() -> None:
    made.clear()
    faults.clear()
    gates.clear()


def letters(letter: str, copies: int = 1000) -> Letters:
    return Letters(prompt="?", letter=letter, copies=copies, **Letters.describe_context(letter * copies))


async def test_a_context_is_made_once_and_shared() -> None:
    cache = ContextCache()
    first, second = await asyncio.gather(cache.get(letters("a")), cache.get(letters("a")))
    assert first is second is await cache.get(letters("a"))
    assert first.value == "a" * 1000
    assert made == ["a"]


async def test_a_context_is_made_beside_the_event_loop() -> None:
    cache = ContextCache()
    gates["a"] = threading.Event()
    waiting = asyncio.ensure_future(cache.get(letters("a")))
    other = await cache.get(letters("b"))  # the event loop and the second thread are free
    assert not waiting.done()
    gates["a"].set()
    assert (await waiting).value[0] + other.value[0] == "ab"


async def test_a_cancelled_rollout_does_not_cancel_the_context_of_others() -> None:
    cache = ContextCache()
    gates["a"] = threading.Event()
    first = asyncio.ensure_future(cache.get(letters("a")))
    second = asyncio.ensure_future(cache.get(letters("a")))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gates["a"].set()
    assert (await second).size == 1000
    assert made == ["a"]


async def test_a_failed_context_is_made_again_at_the_next_call() -> None:
    cache = ContextCache()
    faults["a"] = OSError("not mounted")
    with pytest.raises(OSError, match="not mounted"):
        await cache.get(letters("a"))
    faults.clear()
    assert (await cache.get(letters("a"))).size == 1000


async def test_a_context_with_another_hash_is_refused() -> None:
    data = letters("a").model_copy(update={"letter": "b"})
    with pytest.raises(ContextMismatchError, match="the data or the generator changed"):
        await ContextCache().get(data)


async def test_the_least_recently_used_context_is_dropped_first() -> None:
    cache = ContextCache(capacity=2500)
    for letter in "abacab":
        await cache.get(letters(letter))
    # c replaced b, because a was used later than b; then b replaced c.
    assert made == ["a", "b", "c", "b"]


async def test_the_newest_context_is_kept_even_if_it_exceeds_the_capacity() -> None:
    cache = ContextCache(capacity=10)
    await cache.get(letters("a"))
    await cache.get(letters("a"))
    assert made == ["a"]


def test_several_event_loops_share_one_cache() -> None:
    cache = ContextCache()
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(asyncio.run(cache.get(letters("a")))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(context) for context in results}) == 1
    assert made == ["a"]


def test_the_cache_of_the_process_takes_the_largest_capacity() -> None:
    cache = shared_cache(10)
    assert shared_cache(2**40) is cache
    assert shared_cache(10).capacity == 2**40


def test_task_data_does_not_hold_the_context() -> None:
    data = letters("a", copies=100_000)
    assert len(data.model_dump_json()) < 1000
    assert data.context_size == 100_000
    assert data.context_kind == "str"


def test_task_data_without_materialise_is_an_error() -> None:
    data = ContextTaskData(prompt="?", **ContextTaskData.describe_context(""))
    with pytest.raises(NotImplementedError, match="ContextTaskData does not implement materialise"):
        data.build_context()
