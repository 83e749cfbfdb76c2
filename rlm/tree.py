"""What the runs of one call tree share, and how a run ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlm.environments.base import Environment
from rlm.errors import (
    ContextLengthError,
    ErrorThresholdExceededError,
    RLMError,
    RolloutStoppedError,
    TimeoutExceededError,
    TokenLimitExceededError,
)
from rlm.limits import Ledger
from rlm.models import Models
from rlm.types import Iteration, Message, RunStats, StopReason


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for every run of a tree."""

    max_depth: int
    max_iterations: int
    max_errors: int | None
    max_concurrent_subcalls: int
    system_prompt: str
    prologue: str | None
    session: dict[str, Any]
    """Fields of `SessionSpec`."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What the runs of one call tree share."""

    settings: Settings
    models: Models
    environment: Environment
    ledger: Ledger
    listeners: tuple[Callable[[dict[str, Any]], None], ...] = ()


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    response: str
    """The answer, or the best that there was; may be empty."""
    stop: StopReason
    error: RLMError | None
    """What ended the run early; None if it ended by itself."""
    stats: RunStats
    messages: list[Message]
    iterations: list[Iteration]


def stop_reason(error: RLMError) -> StopReason:
    """The reason that an error stands for."""
    for kind, reason in (
        (TimeoutExceededError, StopReason.TIMEOUT),
        (TokenLimitExceededError, StopReason.TOKEN_LIMIT),
        (ContextLengthError, StopReason.CONTEXT_LENGTH),
        (RolloutStoppedError, StopReason.STOPPED),
        (ErrorThresholdExceededError, StopReason.ERROR_THRESHOLD),
    ):
        if isinstance(error, kind):
            return reason
    return StopReason.ERROR
