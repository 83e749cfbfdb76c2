"""REPLs and the places where they can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlm._registry import Registry
from rlm.errors import ConfigError
from rlm.repl.base import (
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

__all__ = [
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
    "names",
    "register_environment",
]

Factory = Callable[..., Environment]
"""Makes an environment from the entries of `environment_kwargs` that are none of `SessionSpec`'s, which are its keyword
arguments. Raises ConfigError where they do not fit."""

_NOT_BUILT = ("ipython", "docker", "modal", "prime", "daytona", "e2b")
_registry: Registry[Environment] = Registry(
    "environment", {"local": ("rlm.environments.local", "LocalEnvironment")}
)


def register_environment(name: str, factory: Factory, *, replace: bool = False) -> None:
    """Makes a place known, so that `environment=name` means it everywhere.

    Args:
        factory: returns an `Environment`: an object whose `open` starts a REPL.
        replace: the name may be taken.

    Raises:
        ConfigError: the name is taken, or the arguments are not a name and a function.
    """
    _registry.register(name, factory, replace=replace)


def names() -> list[str]:
    """The names that `environment` may have."""
    return _registry.names()


def make_environment(name: str, **kwargs: Any) -> Environment:
    """Makes an environment.

    Args:
        name: one of `names()`.
        kwargs: its settings; for "local" those of `rlm.environments.local.LocalEnvironment`.

    Raises:
        ConfigError: there is no such environment or setting (the message names the nearest), or it is not built yet.
    """
    if name in _NOT_BUILT and name not in names():
        raise ConfigError(f"environment {name!r} is not built yet; there are {', '.join(names())}")
    return _registry.make(name, kwargs)
