"""Factories by name: of model providers and of places, built in or added by a program."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from rlm._wording import nearest, with_article
from rlm.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Factories by name.

    Args:
        what: the message's word for what they make: "backend".
        built_in: module and attribute of each factory of the package, by name. It is imported on first use.
    """

    def __init__(self, what: str, built_in: Mapping[str, tuple[str, str]]) -> None:
        self._what = what
        self._built_in = built_in
        self._added: dict[str, Callable[..., T]] = {}

    def register(self, name: str, factory: Callable[..., T], *, replace: bool) -> None:
        """Adds a factory.

        Args:
            replace: whether the factory may replace another one of that name.

        Raises:
            ConfigError: the name is taken and `replace` is False, or the arguments are not a name and a function.
        """
        if not (name and isinstance(name, str)):
            raise ConfigError(f"the name of {with_article(self._what)} must be a str, not {name!r}")
        if not callable(factory):
            raise ConfigError(f"the factory of {self._what} {name!r} must be a function that makes one")
        if name in self.names() and not replace:
            raise ConfigError(
                f"there is {with_article(self._what)} {name!r} already; give replace=True to take its place"
            )
        self._added[name] = factory

    def names(self) -> list[str]:
        """All names: the package's own first."""
        return [*self._built_in, *(name for name in self._added if name not in self._built_in)]

    def factory(self, name: str) -> Callable[..., T]:
        """The factory of that name.

        Raises:
            ConfigError: there is none; the message names the nearest name.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._built_in:
            raise ConfigError(f"there is no {self._what} {name!r}{nearest(name, self.names())}")
        module, attribute = self._built_in[name]
        factory: Callable[..., T] = getattr(importlib.import_module(module), attribute)
        return factory

    def make(
        self, name: str, options: Mapping[str, Any], hint: Callable[[str, list[str]], str] | None = None
    ) -> T:
        """Makes one.

        Args:
            options: keyword arguments of the factory.
            hint: gets an unknown option and the known ones; returns the end of the message, or "" for the nearest name.

        Raises:
            ConfigError: there is no such factory or option (the message names the nearest), an option is missing, or an
                option does not fit.
        """
        self.check(name, options, hint)
        factory = self.factory(name)
        missing = [option for option in _required(factory) if option not in options]
        if missing:
            raise ConfigError(f"{self._what} {name!r} needs {' and '.join(missing)} in {self._what}_kwargs")
        return factory(**options)

    def check(
        self, name: str, options: Mapping[str, Any], hint: Callable[[str, list[str]], str] | None = None
    ) -> None:
        """Checks a name and its options without making anything. The arguments are those of `make`.

        Raises:
            ConfigError: there is no such factory or option.
        """
        known = options_of(self.factory(name))
        for option in options:
            if known is not None and option not in known:
                more = (hint(option, known) if hint is not None else "") or nearest(option, known)
                raise ConfigError(f"{self._what} {name!r} takes no {option!r}{more}")


def options_of(factory: Callable[..., Any]) -> list[str] | None:
    """The names of the keyword arguments that a factory takes; None if it takes any name."""
    known: list[str] = []
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            known.append(parameter.name)
            continue
        # `**options: Unpack[SomeTypedDict]` names them; a plain `**kwargs` does not.
        unpacked = typing.get_type_hints(factory).get(parameter.name)
        if typing.get_origin(unpacked) is not typing.Unpack:
            return None
        known += typing.get_args(unpacked)[0].__annotations__
    return known


def _required(factory: Callable[..., Any]) -> list[str]:
    """The names of the required arguments of a factory."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]
