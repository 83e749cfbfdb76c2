"""Words of messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def a(value: Any) -> str:
    """The value's type with an article."""
    if value is None:
        return "None"
    name = type(value).__qualname__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about a name that there is not."""
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"
