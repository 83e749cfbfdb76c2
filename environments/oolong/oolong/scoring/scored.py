"""The part of an example that scorers need, and the constants that they share."""

from __future__ import annotations

from typing import Protocol

MAX_ANSWER_CHARS = 1_000
"""Longer answers score 0 without being read. No question has a right answer near this length, even with decoration."""

PARTIAL = 0.75
"""A number that is off by d scores PARTIAL**d."""


class Scored(Protocol):
    """The fields of an example that a scorer reads."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> tuple[str, ...]: ...
    @property
    def answer_type(self) -> str: ...
    @property
    def task_group(self) -> str: ...
