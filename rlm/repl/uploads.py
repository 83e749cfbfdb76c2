"""Contexts, and values among the tools, on their way into a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from rlm.context import Context

MOST_FILES = 200
"""Contexts that a place brings as files. The kernel passes at most 253 descriptors with one message. The worker asks for
further contexts over its stream, piece by piece."""

_MOST_ON_LOOP = 1 << 20
"""Characters up to which a context is measured on the event loop rather than in a thread."""


class Supply:
    """Values that the host announces to a worker, and that the worker then asks for.

    Args:
        contexts: become `context_N`, from `first` on; the last one becomes `context` too.
        values: further values with their names. A value without a name is a dict of names and values.
    """

    def __init__(
        self, contexts: Sequence[Context] = (), first: int = 0, values: Sequence[tuple[str, Context]] = ()
    ) -> None:
        names = [[f"context_{number}"] for number in range(first, first + len(contexts))]
        if names:
            names[-1].append("context")
        names += [[name] if name else [] for name, _ in values]
        self._names = names
        self.contexts = [*contexts, *(value for _, value in values)]
        self._pieces: dict[int, Iterator[bytes]] = {}

    async def measure(self) -> int:
        """The encoded size of all values in bytes."""
        size = 0
        for context in self.contexts:
            if context.size <= _MOST_ON_LOOP or context.has_file:
                size += context.encoded_size
            else:
                size += await asyncio.to_thread(lambda context=context: context.encoded_size)  # type: ignore[misc]
        return size

    def announce(self) -> list[dict[str, Any]]:
        """The names, the kind and the size in bytes of each value."""
        return [
            {"names": names, "kind": context.kind, "size": context.encoded_size}
            for names, context in zip(self._names, self.contexts, strict=True)
        ]

    def piece(self, number: Any) -> bytes:
        """The next piece of a value; empty at its end.

        Args:
            number: the position of the value in what was announced. It comes from the worker and is not checked.

        Raises:
            LookupError, TypeError: there is no such value.
        """
        if number not in self._pieces:
            self._pieces[number] = self.contexts[range(len(self.contexts))[number]].chunks()
        return next(self._pieces[number], b"")
