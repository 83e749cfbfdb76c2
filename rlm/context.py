"""The input of a run, encoded once."""

from __future__ import annotations

from typing import Any


class Context:
    """An input: `str`, `bytes`, or `list`, `tuple`, `dict` of plain values at any depth. Encoded at construction, hashed,
    and shared by every REPL that gets it. Immutable."""

    kind: str
    """"str", "bytes", "list", "tuple" or "dict"."""
    size: int
    """Characters of a str, bytes of bytes, items of the rest."""
    sha256: str
    """Of the encoded form."""

    def __init__(self, value: Any) -> None: ...

    @classmethod
    def of(cls, value: Any) -> Context:
        """`value` itself if it is a Context already.

        Raises:
            ContextError: the value is of another type, or holds something that cannot be sent.
        """
        ...

    @property
    def value(self) -> Any:
        """The Python value (the object that was given)."""
        ...

    def describe(self) -> dict[str, Any]:
        """kind, size and sha256: what logs hold of a context."""
        ...
