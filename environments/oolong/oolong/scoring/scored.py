"""What a scorer says."""

from __future__ import annotations

from typing import Protocol

MAX_ANSWER_CHARS = 1_000
"""Longer answers are wrong unread. Nothing that can be asked has an answer near this long, with decoration."""

PARTIAL = 0.75


class Scored(Protocol):
    """What a scorer needs of an example."""

    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> tuple[str, ...]: ...
    @property
    def answer_type(self) -> str: ...
    @property
    def task_group(self) -> str: ...
