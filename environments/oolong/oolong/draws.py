"""Random draws that are the same on every machine and every Python.

Python promises only of `random.Random.random()`, seeded with a string, that it repeats across versions. Every draw here is
made from it.
"""

from __future__ import annotations

import random
from collections.abc import MutableSequence, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Draws:
    """A stream of random draws, determined by its name. Not safe to share between threads."""

    def __init__(self, *name: object) -> None:
        """The seed is the name: its parts as text, joined by colons."""
        self._random = random.Random(":".join(str(part) for part in name)).random

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random() * n)

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._random() < p

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def shuffle(self, items: MutableSequence[Any]) -> None:
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        copy = list(items)
        self.shuffle(copy)
        return copy

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k items from different places, in random order; all items if there are fewer than k."""
        copy = list(items)
        k = min(k, len(copy))
        for i in range(k):
            j = i + self.below(len(copy) - i)
            copy[i], copy[j] = copy[j], copy[i]
        return copy[:k]
