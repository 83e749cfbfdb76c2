"""Prices of models, for providers that do not report the cost of a call."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlm.errors import ConfigError
from rlm.types import Usage

_MILLION = 1_000_000
_DATE = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")


@dataclass(frozen=True, slots=True)
class Price:
    """The price of one model in USD per million tokens."""

    input: float
    output: float
    cached_input: float | None = None
    """Price of input that the provider's prefix cache held. None: the price of `input`."""
    cache_write: float | None = None
    """Price of input that was written to the cache. None: the price of `input`."""
    long_prompt: tuple[int, Price] | None = None
    """A number of tokens, and the price of all tokens of a call whose prompt has more."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached_input", "cache_write"):
            value = getattr(self, name)
            if value is None and name.startswith("cache"):
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
                or value < 0
            ):
                raise ConfigError(
                    f"a price's {name} must be USD per million tokens, at least 0, not {value!r}"
                )
        if self.long_prompt is not None:
            match self.long_prompt:
                case (int(), Price()):
                    pass
                case _:
                    raise ConfigError(
                        f"a price's long_prompt must be (tokens, Price(...)), not {self.long_prompt!r}"
                    )

    def cost(self, usage: Usage) -> float:
        """USD of one call."""
        if self.long_prompt is not None and usage.input_tokens > self.long_prompt[0]:
            return self.long_prompt[1].cost(usage)
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        dollars = (
            (usage.input_tokens - cached - written) * self.input
            + cached * (self.input if self.cached_input is None else self.cached_input)
            + written * (self.input if self.cache_write is None else self.cache_write)
            + usage.output_tokens * self.output
        )
        return dollars / _MILLION

    def bound(self, prompt_tokens: int) -> tuple[float, float]:
        """The most that a prompt of that many tokens can cost in USD, and the price of one token of its reply in USD."""
        if self.long_prompt is not None and prompt_tokens > self.long_prompt[0]:
            return self.long_prompt[1].bound(prompt_tokens)
        dearest = max(self.input, self.cached_input or 0.0, self.cache_write or 0.0)
        return prompt_tokens * dearest / _MILLION, self.output / _MILLION


class Prices:
    """The prices of a run. The caller's prices take precedence over the built-in table."""

    def __init__(self, overrides: Mapping[str, Price | Mapping[str, Any]] | None = None) -> None:
        """
        Args:
            overrides: the caller's prices by model name (`model_name`): each a `Price` or a dict of its fields.

        Raises:
            ConfigError: a price does not fit.
        """
        if overrides is not None and not isinstance(overrides, Mapping):
            raise ConfigError(
                f"prices must map names of models to prices, not be a {type(overrides).__name__}"
            )
        self._own = {name: _price(name, given) for name, given in (overrides or {}).items()}

    def of(self, model: str) -> Price | None:
        """The price of a model; None: it is unknown. A date in the name (`-2025-08-07`, `-20251001`) and a vendor before it
        (`openai/gpt-5`) are ignored if the full name is unknown."""
        if model in self._own:
            return self._own[model]
        plain = _plain(model)
        return self._own.get(plain) or _TABLE.get(plain)

    def cost(self, model: str, usage: Usage) -> float | None:
        """The cost of one call in USD: as the provider reported it, or else by price. None: neither is known."""
        if usage.cost is not None:
            return usage.cost
        price = self.of(model)
        return None if price is None else price.cost(usage)


def _plain(model: str) -> str:
    """The name without vendor and date. OpenRouter and Vercel write claude-opus-4.5 for claude-opus-4-5."""
    name = _DATE.sub("", model.lower().rpartition("/")[2])
    return name.replace(".", "-") if name.startswith("claude") else name


def _price(name: str, given: Any) -> Price:
    if isinstance(given, Price):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"the price of {name!r} must be a Price or a dict of its fields, not {type(given).__name__}"
        )
    known = [f.name for f in fields(Price)]
    for key in given:
        if key not in known:
            raise ConfigError(f"the price of {name!r} has no field {key!r}; there are {', '.join(known)}")
    missing = [key for key in ("input", "output") if key not in given]
    if missing:
        raise ConfigError(f"the price of {name!r} needs {' and '.join(missing)}, in USD per million tokens")
    return Price(**given)


def _long(tokens: int, price: Price, inputs: float, output: float) -> Price:
    """A price that is higher for long prompts.

    Args:
        tokens: prompts with more tokens are long.
        price: the price of other prompts.
        inputs: factor of all input prices for long prompts.
        output: factor of the output price for long prompts.
    """
    dearer = Price(
        price.input * inputs,
        price.output * output,
        None if price.cached_input is None else price.cached_input * inputs,
        None if price.cache_write is None else price.cache_write * inputs,
    )
    return Price(price.input, price.output, price.cached_input, price.cache_write, (tokens, dearer))


# Standard rates as of November 2026, from two third-party lists that agree on each line. The providers' own pages:
# https://platform.claude.com/docs/en/about-claude/pricing, https://developers.openai.com/api/docs/pricing,
# https://ai.google.dev/gemini-api/docs/pricing. Prices change: pass your own where exact costs matter. Left out on purpose:
# models on which the lists disagree; batch, priority and regional rates; cache writes that live longer than five minutes;
# storage of caches.
_TABLE: dict[str, Price] = {
    # Anthropic
    "claude-fable-5": Price(10, 50, 1.00, 12.50),
    "claude-opus-5-5": Price(4, 20, 0.20, 5.00),
    "claude-opus-5": Price(5, 25, 0.50, 6.25),
    "claude-opus-4-8": Price(5, 25, 0.50, 6.25),
    "claude-opus-4-7": Price(5, 25, 0.50, 6.25),
    "claude-opus-4-6": Price(5, 25, 0.50, 6.25),
    "claude-opus-4-5": Price(5, 25, 0.50, 6.25),
    "claude-opus-4-1": Price(15, 75, 1.50, 18.75),
    "claude-sonnet-5-5": Price(2, 10, 0.10, 2.50),
    "claude-sonnet-4-6": Price(3, 15, 0.30, 3.75),
    "claude-sonnet-4-5": Price(3, 15, 0.30, 3.75),
    "claude-haiku-5-5": _long(100_000, Price(0.10, 0.50, 0.01, 0.125), 5, 5),
    "claude-haiku-4-5": Price(1, 5, 0.10, 1.25),
    # OpenAI
    "gpt-6-astra": _long(272_000, Price(10, 50, 1.00, 12.50), 2, 1.5),
    "gpt-6-sol": _long(272_000, Price(2, 10, 0.20, 2.50), 2, 1.5),
    "gpt-6-luna": _long(272_000, Price(0.10, 0.50, 0.01, 0.125), 2, 1.5),
    "gpt-5.4": _long(272_000, Price(2.50, 15, 0.25), 2, 1.5),
    "gpt-5.4-mini": Price(0.75, 4.50, 0.075),
    "gpt-5.4-nano": Price(0.20, 1.25, 0.02),
    "gpt-5.2": Price(1.75, 14, 0.175),
    "gpt-5.1": Price(1.25, 10, 0.125),
    "gpt-5": Price(1.25, 10, 0.125),
    "gpt-5-mini": Price(0.25, 2, 0.025),
    "gpt-5-nano": Price(0.05, 0.40, 0.005),
    "gpt-4.1": Price(2, 8, 0.50),
    "gpt-4.1-mini": Price(0.40, 1.60, 0.10),
    "gpt-4.1-nano": Price(0.10, 0.40, 0.025),
    "gpt-4o": Price(2.50, 10, 1.25),
    "gpt-4o-mini": Price(0.15, 0.60, 0.075),
    "o3": Price(2, 8, 0.50),
    "o3-mini": Price(1.10, 4.40, 0.55),
    "o4-mini": Price(1.10, 4.40, 0.275),
    # Google
    "gemini-3.5-flash": Price(1.50, 9, 0.15),
    "gemini-3.5-flash-lite": Price(0.30, 2.50, 0.03),
    "gemini-3.1-pro-preview": _long(200_000, Price(2, 12, 0.20), 2, 1.5),
    "gemini-3.1-flash-lite": Price(0.25, 1.50, 0.025),
    "gemini-3-flash-preview": Price(0.50, 3, 0.05),
    "gemini-2.5-pro": _long(200_000, Price(1.25, 10, 0.125), 2, 1.5),
    "gemini-2.5-flash": Price(0.30, 2.50, 0.03),
    "gemini-2.5-flash-lite": Price(0.10, 0.40, 0.01),
}
