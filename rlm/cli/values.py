"""Options of the form NAME=VALUE."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rlm.errors import ConfigError


def add_values(group: argparse._ActionsContainer, option: str, text: str) -> None:
    """Adds an option that takes NAME=VALUE and can be given many times."""
    group.add_argument(option, action="append", default=[], metavar="NAME=VALUE", help=text)


def values_of(option: str, words: Sequence[str]) -> dict[str, Any]:
    """The values by name. A value that is not JSON is text: `seed=1`, `stop=["\\n\\n"]`, `reasoning_effort=low`.

    Args:
        option: the option's name, for messages.
        words: what the user gave, one word for each time the option was given.

    Raises:
        ConfigError: a word has another form, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} takes NAME=VALUE, not {word!r}")
        if name in values:
            raise ConfigError(f"{option} was given {name!r} twice")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def prices_of(words: Sequence[str]) -> dict[str, dict[str, float]]:
    """The prices by model, as `RLM(prices=...)` takes them.

    Args:
        words: one for each model, such as `qwen3=0.1,0.4`: USD per million input tokens and output tokens.

    Raises:
        ConfigError: a word has another form.
    """
    prices: dict[str, dict[str, float]] = {}
    for word in words:
        name, _, numbers = word.rpartition("=")
        try:
            first, second = map(float, numbers.split(","))
        except ValueError:
            raise ConfigError(f"--price takes MODEL=IN,OUT in USD per million tokens, not {word!r}") from None
        prices[name] = {"input": first, "output": second}
    return prices
