"""The objects that all runs of a call tree share, and the outcome of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm.engine.ledger import Ledger
from rlm.engine.models import Models
from rlm.engine.settings import TreeSettings
from rlm.errors import (
    AnswerFormatError,
    BudgetExceededError,
    CancellationError,
    ContextLengthError,
    ErrorThresholdExceededError,
    RLMError,
    RolloutStoppedError,
    TimeoutExceededError,
    TokenLimitExceededError,
)
from rlm.repl.interface import Environment
from rlm.types import Message, RunStats, StopReason

if TYPE_CHECKING:
    from rlm.events import Event
    from rlm.logger.run_tree import RunTree


@dataclass(frozen=True, slots=True)
class CallTree:
    """The objects that all runs of a call tree share."""

    settings: TreeSettings
    models: Models
    environment: Environment
    ledger: Ledger
    listeners: tuple[Callable[[Event], None], ...] = ()
    """Functions that get the events of all runs."""
    record: RunTree | None = None
    """Takes the events of the root's run, for `completion.iterations`."""
    queries: asyncio.Semaphore = field(init=False)
    """Slots of the plain sub-calls. A plain sub-call with a slot waits for no other sub-call, so one bound serves the tree."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", asyncio.Semaphore(self.settings.max_concurrent_queries))


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    response: str
    """The answer, or the best one so far; empty if there is none."""
    stop: StopReason
    error: RLMError | None
    """The error that ended the run, or that came beside its answer; None if there was no error."""
    stats: RunStats
    messages: list[Message]
    parsed: Any = None
    """The answer as the object that `response_format` asks for."""


def stop_reason(error: RLMError) -> StopReason:
    """The stop reason of a run that ended with this error."""
    for kind, reason in (
        (TimeoutExceededError, StopReason.TIMEOUT),
        (TokenLimitExceededError, StopReason.TOKEN_LIMIT),
        (BudgetExceededError, StopReason.BUDGET),
        (CancellationError, StopReason.CANCELLED),
        (ContextLengthError, StopReason.CONTEXT_LENGTH),
        (RolloutStoppedError, StopReason.STOPPED),
        (ErrorThresholdExceededError, StopReason.ERROR_THRESHOLD),
        (AnswerFormatError, StopReason.MAX_ITERATIONS),
    ):
        if isinstance(error, kind):
            return reason
    return StopReason.ERROR
