"""Wording of messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def a(value: Any) -> str:
    """The type of a value with its article: "an int", "a dict"; "None" for None, "a type" for each class."""
    if isinstance(value, type):
        return "a type"  # not the name of its metaclass
    return "None" if value is None else with_article(type(value).__qualname__)


def with_article(word: str) -> str:
    """A word with its article: "an environment", "a backend"."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or all of them if none is near."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
