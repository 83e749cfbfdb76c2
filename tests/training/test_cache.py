"""Contexts by reference: made once, checked, shared, and dropped when there are too many."""

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


async def test_it_is_made_beside_the_event_loop() -> None:
    cache = ContextCache()
    gates["a"] = threading.Event()
    waiting = asyncio.ensure_future(cache.get(letters("a")))
    other = await cache.get(letters("b"))  # the loop is free, and so is a second thread
    assert not waiting.done()
    gates["a"].set()
    assert (await waiting).value[0] + other.value[0] == "ab"


async def test_one_rollout_that_is_cancelled_does_not_take_it_from_the_others() -> None:
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


async def test_what_failed_is_tried_again() -> None:
    cache = ContextCache()
    faults["a"] = OSError("not mounted")
    with pytest.raises(OSError, match="not mounted"):
        await cache.get(letters("a"))
    faults.clear()
    assert (await cache.get(letters("a"))).size == 1000


async def test_a_context_other_than_the_described_one_is_refused() -> None:
    data = letters("a").model_copy(update={"letter": "b"})
    with pytest.raises(ContextMismatchError, match="the data or the generator changed"):
        await ContextCache().get(data)


async def test_the_least_recently_used_go_first() -> None:
    cache = ContextCache(capacity=2500)
    for letter in "abacab":
        await cache.get(letters(letter))
    # b went for c, as a had been used since; c went for the second b.
    assert made == ["a", "b", "c", "b"]


async def test_one_that_is_larger_than_the_cache_is_kept_while_it_is_the_newest() -> None:
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


def test_the_text_is_not_in_the_task() -> None:
    data = letters("a", copies=100_000)
    assert len(data.model_dump_json()) < 1000
    assert data.context_size == 100_000
    assert data.context_kind == "str"


def test_a_task_without_a_way_to_its_context_says_so() -> None:
    data = ContextTaskData(prompt="?", **ContextTaskData.describe_context(""))
    with pytest.raises(NotImplementedError, match="ContextTaskData does not implement materialise"):
        data.build_context()
