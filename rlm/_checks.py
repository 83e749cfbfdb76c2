"""Checks of arguments, shared by several public functions. Each `check_...` raises ConfigError if an argument does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlm._wording import a
from rlm.cancellation import CancelToken
from rlm.errors import ConfigError


def is_number(value: object) -> bool:
    """Whether a value is a finite number that a float can hold, and no bool."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_integer(what: str, given: object, least: int) -> None:
    """Refuses everything but an int of at least `least`. A bool is no int here."""
    if not isinstance(given, int) or isinstance(given, bool) or given < least:
        raise ConfigError(f"{what} must be an integer of at least {least}, and is {given!r}")


def check_names(what: str, given: object) -> None:
    """Refuses everything but a mapping whose keys are strings."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what} must be a dict, and is {a(given)}")
    for name in given:
        if not isinstance(name, str):
            raise ConfigError(f"{what} is a dict of names and values, and {name!r} is no name")


def check_list(what: str, given: object, kind: type, items: str) -> None:
    """Refuses everything but a sequence of `kind`; `items` is the message's word for the items. A str is refused too: it
    is a sequence of letters."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"{what} must be a list of {items}, and is {a(given)}")
    for item in given:
        if not isinstance(item, kind):
            raise ConfigError(f"{what} must be a list of {items}, and holds {a(item)}")


def check_call(root_prompt: object, cancel: object) -> None:
    """Checks the arguments that a completion and a map have in common."""
    if not isinstance(root_prompt, str | None):
        raise ConfigError(f"root_prompt must be a str or None, and is {a(root_prompt)}")
    if not isinstance(cancel, CancelToken | None):
        raise ConfigError(f"cancel must be a CancelToken or None, and is {a(cancel)}")
