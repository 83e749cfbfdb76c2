"""What broke in a rollout, as data on its trace."""

from __future__ import annotations

import asyncio
import traceback

from rlm.errors import ConfigError, ContextError, LimitError, ModelError, REPLError


def storable(text: str) -> str:
    """The text with U+FFFD for lone surrogates. They have no UTF-8 form, so a trace that holds one cannot be sent: a rollout
    could withdraw itself from its group by answering with one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class ContextUnavailableError(Exception):
    """The task's context could not be materialised."""


_PLACES: tuple[tuple[type[BaseException], str], ...] = (
    (ContextUnavailableError, "context"),
    (ContextError, "context"),
    (REPLError, "repl"),
    (ModelError, "model"),
    (LimitError, "limit"),
    (ConfigError, "config"),
    (asyncio.CancelledError, "cancelled"),
)


def failure_of(error: BaseException) -> dict[str, str]:
    """Where it failed ("context", "repl", "model", "limit", "config", "engine", "cancelled"), the `type` of the error and its
    `message`; a `traceback` as well if nobody expected it. All of it can be sent and stored."""
    where = next((place for kind, place in _PLACES if isinstance(error, kind)), "engine")
    cause = error.__cause__ if isinstance(error, ContextUnavailableError) else error
    failure = {
        "where": where,
        "type": type(cause).__name__,
        "message": storable(str(cause)) or "the rollout was cancelled",
    }
    if where == "engine":  # nobody expected it: say where it came from
        failure["traceback"] = storable("".join(traceback.format_exception(error))[-4000:])
    return failure
