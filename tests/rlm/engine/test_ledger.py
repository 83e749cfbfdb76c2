"""The ledger of a call tree."""

from __future__ import annotations

import asyncio

import pytest

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


def test_the_token_limit_trips_when_a_reply_crosses_it() -> None:
    ledger = Ledger(max_tokens=100)
    ledger.book("m", Usage(60, 39), root=False)
    ledger.check()
    ledger.book("m", Usage(1, 0), root=True)
    with pytest.raises(TokenLimitExceededError) as caught:
        ledger.check()
    assert (caught.value.tokens_used, caught.value.token_limit) == (100, 100)


async def test_the_clock_stops_what_waits_in_a_guard() -> None:
    ledger = Ledger(max_timeout=0.01)
    ledger.start()
    with pytest.raises(TimeoutExceededError) as caught:
        async with ledger.guard():
            await asyncio.Event().wait()
    assert caught.value.timeout == 0.01
    ledger.stop()


async def test_what_may_be_interrupted_is_told_the_limit_once() -> None:
    ledger = Ledger(max_tokens=1)
    told: list[RLMError] = []
    with ledger.interruptible(told.append):
        ledger.book("m", Usage(1, 1), root=True)
        ledger.book("m", Usage(1, 1), root=True)
    assert [type(error) for error in told] == [TokenLimitExceededError]
    with ledger.interruptible(told.append):
        assert len(told) == 2


async def test_a_guard_lets_a_timeout_of_its_body_through() -> None:
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
