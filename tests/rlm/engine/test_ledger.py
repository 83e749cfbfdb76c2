"""The ledger of a call tree."""

from __future__ import annotations

import asyncio

import pytest

from rlm.clients.prices import Price
from rlm.engine.ledger import Ledger
from rlm.errors import RLMError, TimeoutExceededError, TokenLimitExceededError
from rlm.types import Usage


def test_usage_is_booked_once_under_the_model_that_served_it() -> None:
    ledger = Ledger()
    ledger.book("root", Usage(10, 2, cost=0.5), root=True)
    ledger.book("sub", Usage(100, 20), root=False)
    ledger.book("sub", Usage(1, 1, cost=0.25), root=False)
    assert ledger.root == Usage(10, 2, cost=0.5)
    assert ledger.sub == Usage(101, 21, cost=0.25)
    assert ledger.total_tokens == 134
    assert ledger.summary.total_calls == 3
    assert ledger.summary.model_usage_summaries["sub"].total_input_tokens == 101
    assert ledger.summary.total_cost == 0.75


def test_the_token_limit_ends_the_run_when_a_reply_crosses_it() -> None:
    ledger = Ledger(max_tokens=100)
    ledger.book("m", Usage(60, 39), root=False)
    ledger.check()
    ledger.book("m", Usage(1, 0), root=True)
    with pytest.raises(TokenLimitExceededError) as caught:
        ledger.check()
    assert (caught.value.tokens_used, caught.value.token_limit) == (100, 100)


async def test_max_timeout_cancels_a_guarded_block() -> None:
    ledger = Ledger(max_timeout=0.01)
    ledger.start()
    with pytest.raises(TimeoutExceededError) as caught:
        async with ledger.guard():
            await asyncio.Event().wait()
    assert caught.value.timeout == 0.01
    ledger.stop()


async def test_an_interruptible_block_is_stopped_once() -> None:
    ledger = Ledger(max_tokens=1)
    told: list[RLMError] = []
    with ledger.interruptible(told.append):
        ledger.book("m", Usage(1, 1), root=True)
        ledger.book("m", Usage(1, 1), root=True)
    assert [type(error) for error in told] == [TokenLimitExceededError]
    with ledger.interruptible(told.append):
        assert len(told) == 2


async def test_a_guard_raises_a_timeout_of_its_body() -> None:
    ledger = Ledger(max_timeout=60)
    ledger.start()
    with pytest.raises(TimeoutError):
        async with ledger.guard():
            raise TimeoutError("of the body")
    assert ledger.error is None
    ledger.stop()


async def test_a_reply_that_crosses_the_limit_is_kept() -> None:
    ledger = Ledger(max_tokens=1)
    async with ledger.guard():
        ledger.book("m", Usage(5, 5), root=True)
        kept = "reply"
    assert kept == "reply"
    with pytest.raises(TokenLimitExceededError):
        async with ledger.guard():
            pytest.fail("nothing new begins after a limit")


async def test_the_cap_of_a_call_is_the_rest_of_the_limit() -> None:
    ledger = Ledger(max_tokens=1_000)
    async with ledger.claim(300, None, None) as cap:
        assert cap == 700
    async with ledger.claim(300, None, 100) as cap:
        assert cap == 100
    ledger.book("m", Usage(600, 50), root=True)
    async with ledger.claim(300, None, 100) as cap:
        assert cap == 50


async def test_a_call_waits_for_calls_in_flight() -> None:
    ledger = Ledger(max_tokens=1_000)
    order: list[str] = []
    release = asyncio.Event()

    async def call(name: str, size: int) -> None:
        async with ledger.claim(size, None, 100):
            order.append(name)
            if name == "first":
                await release.wait()
            ledger.book("m", Usage(size, 10), root=False)

    tasks = [asyncio.create_task(call("first", 500)), asyncio.create_task(call("second", 450))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["first"]
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "second"]
    assert ledger.total_tokens == 970


async def test_the_cap_of_a_call_is_the_rest_of_the_budget_at_its_price() -> None:
    ledger = Ledger(max_budget=1.0)
    async with ledger.claim(100_000, Price(5.0, 10.0), None) as cap:
        assert cap in (49_999, 50_000)
    async with ledger.claim(10, Price(0.0, 0.0), None) as cap:
        assert cap is None
