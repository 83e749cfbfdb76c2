"""Exceptions of a rollout, as data on its trace."""

from __future__ import annotations

import asyncio
import traceback

from rlm.errors import ConfigError, ContextError, LimitError, ModelError, REPLError
from rlm_train.rollout_info import RolloutFailure


class ContextUnavailableError(Exception):
    """The context of a task could not be made; `__cause__` is the error."""


_PLACES: tuple[tuple[type[BaseException], str], ...] = (
    (ContextUnavailableError, "context"),
    (ContextError, "context"),
    (REPLError, "repl"),
    (ModelError, "model"),
    (LimitError, "limit"),
    (ConfigError, "config"),
    (asyncio.CancelledError, "cancelled"),
)
_TRACEBACK_CHARS = 4_000


def failure_of(error: BaseException) -> RolloutFailure:
    """Describes an error in text that can be sent and stored. An error of no known kind is one of the engine, and comes with
    its traceback."""
    where = next((place for kind, place in _PLACES if isinstance(error, kind)), "engine")
    cause = error.__cause__ if isinstance(error, ContextUnavailableError) else error
    message = storable(str(cause)) or "the rollout was cancelled"
    if where != "engine":
        return RolloutFailure(where, type(cause).__name__, message)
    lines = "".join(traceback.format_exception(error))
    return RolloutFailure(where, type(cause).__name__, message, storable(lines[-_TRACEBACK_CHARS:]))


def storable(text: str) -> str:
    """The text with U+FFFD for lone surrogates. They have no UTF-8 form, so a trace with one cannot be sent. Without this, a
    rollout could withdraw itself from its group by answering with one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
