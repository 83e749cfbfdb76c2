"""Options of the form NAME=VALUE."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rlm.errors import ConfigError


def add_values(group: argparse._ActionsContainer, option: str, text: str) -> None:
    """Adds an option that may be given many times."""
    group.add_argument(option, action="append", default=[], metavar="NAME=VALUE", help=text)


def values_of(option: str, words: Sequence[str]) -> dict[str, Any]:
    """The values by name. A value is JSON, or else text: `seed=1`, `stop=["\\n\\n"]`, `reasoning_effort=low`.

    Raises:
        ConfigError: a word is not of that form, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} takes NAME=VALUE, not {word!r}")
        if name in values:
            raise ConfigError(f"{option} has {name!r} twice")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def prices_of(words: Sequence[str]) -> dict[str, dict[str, float]]:
    """The prices by model, as `RLM(prices=...)` takes them, of words such as `qwen3=0.1,0.4`.

    Raises:
        ConfigError: a word is not of that form.
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
