"""REPLs and the places where they can run."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from rlm.environments.base import (
    REPL,
    AnswerState,
    CellResult,
    CellStatus,
    Environment,
    Query,
    QueryHandler,
    QueryReply,
    SessionSpec,
)
from rlm.errors import ConfigError

__all__ = [
    "NAMES",
    "REPL",
    "AnswerState",
    "CellResult",
    "CellStatus",
    "Environment",
    "Query",
    "QueryHandler",
    "QueryReply",
    "SessionSpec",
    "make_environment",
]

NAMES = ("local", "ipython", "docker", "modal", "prime", "daytona", "e2b")
"""The places by name. Today "local" is built."""


def make_environment(name: str, **kwargs: Any) -> Environment:
    """Makes an environment.

    Args:
        name: one of `NAMES`.
        kwargs: its settings; for "local" those of `rlm.environments.local.LocalEnvironment`.

    Raises:
        ConfigError: there is no such environment or setting (the message names the nearest), or it is not built yet.
    """
    if name not in NAMES:
        raise ConfigError(
            f"there is no environment {name!r}{_nearest(name, NAMES)}; there are {', '.join(NAMES)}"
        )
    if name != "local":
        raise ConfigError(f'the environment {name!r} is not built yet; use "local"')
    from rlm.environments.local import LocalEnvironment

    known = list(inspect.signature(LocalEnvironment).parameters)
    for setting in kwargs:
        if setting not in known:
            raise ConfigError(
                f"the environment {name!r} has no setting {setting!r}{_nearest(setting, known)}; "
                f"it has {', '.join(known)}"
            )
    return LocalEnvironment(**kwargs)


def _nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
