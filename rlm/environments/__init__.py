"""REPLs and the places where they can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlm._registry import Registry
from rlm._wording import a
from rlm.errors import ConfigError
from rlm.repl.interface import (
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
from rlm.repl.repl_settings import DEFAULT_LIMITS, REPLSettings
from rlm.repl.tools import ToolReport

__all__ = [
    "DEFAULT_LIMITS",
    "REPL",
    "AnswerState",
    "CellResult",
    "CellStatus",
    "Environment",
    "Query",
    "QueryHandler",
    "QueryReply",
    "REPLSettings",
    "SessionSpec",
    "ToolReport",
    "make_environment",
    "names",
    "register_environment",
]

Factory = Callable[..., Environment]
"""Makes an environment. Its keyword arguments are the entries of `environment_kwargs` that are not fields of
`REPLSettings`. Raises ConfigError where they do not fit."""

_NOT_BUILT = ("ipython", "docker", "modal", "prime", "daytona", "e2b")
_registry: Registry[Environment] = Registry(
    "environment",
    {
        "local": ("rlm.environments.local", "LocalEnvironment"),
        "program": ("rlm.environments.program", "ProgramEnvironment"),
    },
)


def register_environment(name: str, factory: Factory, *, replace: bool = False) -> None:
    """Gives a place a name, so that `environment=name` means it everywhere. docs/places.md shows how to write one.

    Args:
        factory: returns an `Environment`, or a plain object with a method `open`.
        replace: allows a name that is taken.

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
        kwargs: options of the place; for "local" those of `rlm.environments.local.LocalEnvironment`, for
            "program" those of `rlm.environments.program.ProgramEnvironment`.

    Raises:
        ConfigError: there is no such environment or option (the message names the nearest), it is not built yet, an option
            is missing or does not fit, or its factory made something that cannot open a REPL.
    """
    if name in _NOT_BUILT and name not in names():
        raise ConfigError(f"environment {name!r} is not built yet; there are {', '.join(names())}")
    made: object = _registry.make(name, kwargs)
    return made if isinstance(made, Environment) else _Adapted(name, made)


class _Adapted(Environment):
    """A place whose class does not derive from `Environment`."""

    def __init__(self, name: str, place: Any) -> None:
        if isinstance(place, type) or not callable(getattr(place, "open", None)):
            raise ConfigError(
                f"the factory of environment {name!r} must return an rlm.environments.Environment, and returned {_named(place)}"
            )
        self._place = place

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        repl: REPL = await self._place.open(spec, on_query)
        return repl

    def check(self, settings: REPLSettings) -> None:
        if hasattr(self._place, "check"):
            self._place.check(settings)


def _named(place: object) -> str:
    return f"the class {place.__name__}" if isinstance(place, type) else a(place)
