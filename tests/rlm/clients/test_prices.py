"""Prices of calls."""

from __future__ import annotations

from typing import Any

import pytest

from rlm.clients import Price, Prices
from rlm.errors import ConfigError
from rlm.types import Usage


def test_every_token_has_its_price() -> None:
    price = Price(10, 50, cached_input=1, cache_write=12)
    usage = Usage(1_000_000, 100_000, None, 600_000, 100_000)
    # 300,000 plain tokens, 600,000 read from the cache, 100,000 written to it, 100,000 output
    assert price.cost(usage) == pytest.approx(3 + 0.6 + 1.2 + 5)
    assert Price(10, 50).cost(usage) == pytest.approx(10 + 5)
    assert price.cost(Usage()) == 0


def test_a_long_prompt_costs_more_for_all_its_tokens() -> None:
    price = Price(1, 10, long_prompt=(1000, Price(2, 15)))
    assert price.cost(Usage(1000, 100)) == pytest.approx((1000 + 1000) / 1e6)
    assert price.cost(Usage(1001, 100)) == pytest.approx((2002 + 1500) / 1e6)


def test_a_price_bound_holds_with_any_cache() -> None:
    price = Price(10, 50, cached_input=1, cache_write=12, long_prompt=(1000, Price(20, 75)))
    for tokens in (1000, 1001):
        prompt, each = price.bound(tokens)
        for read, written in ((0, 0), (tokens, 0), (0, tokens)):
            assert price.cost(Usage(tokens, 7, None, read, written)) <= prompt + 7 * each + 1e-12
    assert price.bound(1000) == pytest.approx((0.012, 50e-6))
    assert price.bound(1001) == pytest.approx((0.02002, 75e-6))


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("gpt-5-2025-08-07", "gpt-5"),
        ("openai/gpt-5", "gpt-5"),
        ("@team/openai/gpt-5-2025-08-07", "gpt-5"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("anthropic/claude-haiku-4.5", "claude-haiku-4-5"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
        ("GPT-5", "gpt-5"),
    ],
)
def test_dates_and_vendors_in_a_model_name_are_ignored(name: str, same_as: str) -> None:
    prices = Prices()
    assert prices.of(name) == prices.of(same_as) is not None


@pytest.mark.parametrize(
    "name",
    ["gpt-5-turbo", "gpt-5x", "my-gpt-5", "ft:gpt-4o:me", "openai/gpt-5:free", "Qwen/Qwen3-8B", "gpt", ""],
)
def test_an_unknown_model_has_no_price(name: str) -> None:
    assert Prices().of(name) is None
    assert Prices().cost(name, Usage(10, 10)) is None


def test_the_callers_prices_take_precedence() -> None:
    prices = Prices({"gpt-5": Price(1, 2), "mine": {"input": 3, "output": 4, "cached_input": 0}})
    assert prices.of("gpt-5") == prices.of("openai/gpt-5-2025-08-07") == Price(1, 2)
    assert prices.cost("mine", Usage(1_000_000, 0, None, 500_000)) == pytest.approx(1.5)
    assert prices.of("gpt-5-mini") == Prices().of("gpt-5-mini")
    assert Prices({"local": Price(0, 0)}).cost("local", Usage(5, 5)) == 0


def test_a_reported_cost_takes_precedence_over_prices() -> None:
    assert Prices({"m": Price(1, 1)}).cost("m", Usage(10, 10, 0.25)) == 0.25
    assert Prices().cost("unknown", Usage(10, 10, 0.25)) == 0.25
    assert Prices({"m": Price(1, 1)}).cost("m", Usage(10, 10, 0.0)) == 0


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"m": {"input": 1}}, "needs output"),
        ({"m": {"input": 1, "output": 1, "cached": 1}}, "no field 'cached'"),
        ({"m": {"input": -1, "output": 1}}, "input"),
        ({"m": {"input": "1", "output": 1}}, "input"),
        ({"m": {"input": 1, "output": float("nan")}}, "output"),
        ({"m": {"input": 1, "output": 1, "long_prompt": 5}}, "long_prompt"),
        ({"m": 5}, "must be a Price or a dict"),
        ([("m", 5)], "must map names"),
    ],
)
def test_invalid_prices_are_refused(given: Any, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        Prices(given)
