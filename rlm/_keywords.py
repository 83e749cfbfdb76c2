"""Keyword arguments of public functions: an error names a misspelt one, and a constructor gets all of them as one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

from rlm._wording import nearest
from rlm.errors import ConfigError

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

# Options of another object, which users look for in `RLM(...)`.
_ELSEWHERE = {
    **dict.fromkeys(
        ("model", "model_name", "api_key", "base_url"),
        "; it goes into backend_kwargs={'model_name': ..., ...}",
    ),
    **dict.fromkeys(
        ("isolation", "cell_timeout", "max_output_chars", "limits"), "; it goes into environment_kwargs={...}"
    ),
    "temperature": "; it goes into sampling_args={'temperature': ...}",
    **dict.fromkeys(("response_format", "cancel"), "; it is an argument of completion()"),
}


def check_keywords(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a keyword that `what` does not take. The message names the nearest one that it takes."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = _ELSEWHERE.get(name) or nearest(name, sorted(known))
            raise ConfigError(f"{what} has no option {name!r}{hint}")


def takes(
    options: Callable[P, T], what: str
) -> Callable[[Callable[[S, T], None]], Callable[Concatenate[S, P], None]]:
    """Gives a constructor that takes an options object the signature of the options' class: callers, type checkers and
    `inspect.signature` see every option as a keyword argument.

    Args:
        options: the class of the options.
        what: the message's word for the callee where a keyword is unknown.

    Raises, from the constructor:
        ConfigError: there is no such option (the message names the nearest), or an option does not fit.
        TypeError: there are too many positional arguments, or one option is given twice.
    """
    signature = inspect.signature(options)

    def decorate(constructor: Callable[[S, T], None]) -> Callable[Concatenate[S, P], None]:
        @functools.wraps(constructor)
        def construct(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
            check_keywords(what, kwargs, signature.parameters)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{what}(): {error}") from None
            constructor(self, options(*args, **kwargs))

        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        construct.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[first, *signature.parameters.values()], return_annotation=None
        )
        return construct

    return decorate
