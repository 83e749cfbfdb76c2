"""Exceptions of a rollout, as data on its trace."""

from __future__ import annotations

import asyncio
import traceback

from rlm.clients.message_parts import sendable
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
    """Describes an error in text that can be sent and stored. An error of an unknown kind counts as a bug of the engine, and
    has its traceback. Lone surrogates are replaced: a trace with one cannot be sent, and the rollout would be missing from its
    group."""
    where = next((place for kind, place in _PLACES if isinstance(error, kind)), "engine")
    cause = error.__cause__ if isinstance(error, ContextUnavailableError) else error
    message = sendable(str(cause)) or "the rollout was cancelled"
    if where != "engine":
        return RolloutFailure(where, type(cause).__name__, message)
    lines = "".join(traceback.format_exception(error))
    return RolloutFailure(where, type(cause).__name__, message, sendable(lines[-_TRACEBACK_CHARS:]))
