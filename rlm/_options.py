"""What `RLM` is configured with, checked before anything runs."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar

from rlm._wording import a, nearest
from rlm.cancellation import CancelToken
from rlm.clients import make_client
from rlm.clients.base import Client
from rlm.clients.prices import Price, Prices
from rlm.context.plain_values import is_number
from rlm.errors import ConfigError
from rlm.repl import resource_limits
from rlm.repl.base import Environment, SessionSpec

P = ParamSpec("P")
T = TypeVar("T")

_LEAST = {
    "max_depth": 0,
    "max_iterations": 1,
    "max_errors": 1,
    "max_tokens": 1,
    "max_subcalls": 0,
    "max_concurrent_subcalls": 1,
    "max_concurrent_queries": 1,
}
_MAY_BE_NONE = ("max_errors", "max_tokens", "max_subcalls")

# Options of other things, which people look for here.
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

_OF_THE_ENGINE = {"contexts", "history", "tools", "on_tool"}
_SESSION_OPTIONS = {f.name for f in fields(SessionSpec)} - _OF_THE_ENGINE


def names_nearest(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Has a function say which of its options an unknown one may have been meant to be.

    Args:
        what: what its callers call it.

    Raises, from the function:
        ConfigError: it has no such option.
    """

    def naming(function: Callable[P, T]) -> Callable[P, T]:
        known = list(inspect.signature(function).parameters)[1:]  # the first is the object

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in kwargs:
                if name not in known:
                    hint = _ELSEWHERE.get(name) or nearest(name, sorted(known))
                    raise ConfigError(f"{what} has no option {name!r}{hint}")
            return function(*args, **kwargs)

        return checked

    return naming


def check(given: Mapping[str, Any]) -> None:
    """
    Args:
        given: the arguments of `RLM`, by name.

    Raises:
        ConfigError: one does not fit.
    """
    for name, least in _LEAST.items():
        value = given[name]
        if value is None and name in _MAY_BE_NONE:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be an integer of at least {least}, and is {value!r}")
    for name, unit in (("max_timeout", "seconds"), ("max_budget", "USD")):
        value = given[name]
        if value is not None and not (is_number(value) and value > 0):
            raise ConfigError(f"{name} must be a number of {unit} above 0, or None, and is {value!r}")
    threshold = given["compaction_threshold_pct"]
    if not (is_number(threshold) and 0 < threshold <= 1):
        raise ConfigError(
            f"compaction_threshold_pct is a part of the window, above 0 and at most 1, and is {threshold!r}"
        )
    for name in ("verbose", "persistent", "compaction", "orchestrator"):
        if not isinstance(given[name], bool):
            raise ConfigError(f"{name} must be True or False, and is {given[name]!r}")
    for name in ("backend", "environment"):
        if not isinstance(given[name], str):
            raise ConfigError(f"{name} must be a name, and is {a(given[name])}")
    for name in ("custom_system_prompt", "user_prologue"):
        if not isinstance(given[name], str | None):
            raise ConfigError(f"{name} must be a str or None, and is a {type(given[name]).__name__}")
    for name in ("sampling_args", "sub_sampling_args", "backend_kwargs", "environment_kwargs"):
        if given[name] is not None:
            _check_names(name, given[name])
    _check_sampling(given)
    logger = given["logger"]
    if logger is not None and (isinstance(logger, type) or not callable(getattr(logger, "trajectory", None))):
        raise ConfigError(f"logger must be an RLMLogger or None, and is {a(logger)}")
    _check_models(given)
    if given["depth"] != 0:
        raise ConfigError(
            "depth is the engine's own; leave it at 0, and say with max_depth how deep a run may go"
        )
    if given["max_depth"] == 0:
        for name in ("persistent", "compaction", "custom_tools", "custom_sub_tools"):
            if given[name]:
                raise ConfigError(f"{name} needs a REPL, and max_depth=0 is a run without one")


def _check_names(what: str, given: object) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what} must be a dict, and is {a(given)}")
    for name in given:
        if not isinstance(name, str):
            raise ConfigError(f"{what} is a dict of names and values, and {name!r} is no name")


def _check_sampling(given: Mapping[str, Any]) -> None:
    from rlm.clients.chat_format import merge_sampling

    for name in ("sampling_args", "sub_sampling_args"):
        try:
            merge_sampling({}, given[name])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None


def _check_models(given: Mapping[str, Any]) -> None:
    if given["client"] is not None:
        _check_client("client", given["client"])
        if given["backend_kwargs"] or given["backend"] != "openai":  # which it is if nobody says anything
            raise ConfigError("client takes the place of backend and backend_kwargs: give one of them")
    _check_list("depth_models", given["depth_models"], str, "names of models")


def _check_client(what: str, client: object) -> None:
    methods = all(callable(getattr(client, name, None)) for name in ("complete", "context_length"))
    if not (methods and isinstance(getattr(client, "model", None), str)):
        hint = "; the name of a model goes into backend_kwargs" if isinstance(client, str) else ""
        raise ConfigError(
            f"{what} must be a client, as rlm.clients.make_client makes one, and is {a(client)}{hint}"
        )


def _check_list(what: str, given: object, kind: type, items: str) -> None:
    # A str is a sequence of letters, and is never meant so.
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"{what} must be a list of {items}, and is {a(given)}")
    for item in given:
        if not isinstance(item, kind):
            raise ConfigError(f"{what} must be a list of {items}, and holds {a(item)}")


def check_call(root_prompt: object, cancel: object) -> None:
    """
    Args:
        root_prompt, cancel: arguments of a completion, or of many.

    Raises:
        ConfigError: one does not fit.
    """
    if not isinstance(root_prompt, str | None):
        raise ConfigError(f"root_prompt must be a str or None, and is {a(root_prompt)}")
    if not isinstance(cancel, CancelToken | None):
        raise ConfigError(f"cancel must be a CancelToken or None, and is {a(cancel)}")


def other_clients(
    clients: Sequence[Client] | Mapping[str, Client] | None,
    backends: Sequence[str] | None,
    kwargs: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Client]:
    """The sub-models, by the names that the code uses.

    Raises:
        ConfigError: the arguments do not go together, or two models have one name.
    """
    if clients is None:
        if backends is None and kwargs is None:
            return {}
        if backends is not None:
            _check_list("other_backends", backends, str, "names of backends")
        if kwargs is not None:
            _check_list("other_backend_kwargs", kwargs, Mapping, "dicts")
        if backends is None or kwargs is None or len(backends) != len(kwargs):
            raise ConfigError(
                "other_backends and other_backend_kwargs go together: one mapping for each backend"
            )
        for number, options in enumerate(kwargs):
            _check_names(f"other_backend_kwargs[{number}]", options)
        pairs = zip(backends, kwargs, strict=True)
        clients = [make_client(backend, **options) for backend, options in pairs]
    elif backends is not None or kwargs is not None:
        raise ConfigError("other_clients takes the place of other_backends: give one of them")
    if isinstance(clients, Mapping):
        _check_names("other_clients", clients)
        for name, client in clients.items():
            _check_client(f"other_clients[{name!r}]", client)
        return dict(clients)
    _check_list("other_clients", clients, object, "clients, or a dict of names and clients")
    for number, client in enumerate(clients):
        _check_client(f"other_clients[{number}]", client)
    named: dict[str, Client] = {}
    for client in clients:
        if client.model in named:
            raise ConfigError(
                f"there are two sub-models named {client.model!r}: name them, with "
                "other_clients={'one': make_client(...), 'two': make_client(...)}"
            )
        named[client.model] = client
    return named


def pricing(prices: Mapping[str, Any] | None, *, required: bool) -> Callable[[Client], Price | None]:
    """What the model of a client costs.

    Args:
        prices: over the built-in table.
        required: there is a budget, so every cost has to be known.

    Raises:
        ConfigError: a price does not fit; from the function, a price is required and unknown.
    """
    table = Prices(prices)

    def price(client: Client) -> Price | None:
        found = table.of(client.model)
        if found is None and required and not getattr(client, "reports_cost", False):
            raise ConfigError(
                f"max_budget needs to know what {client.model!r} costs: give "
                f"prices={{{client.model!r}: {{'input': ..., 'output': ...}}}} in USD per million tokens"
            )
        return found

    return price


def split_environment(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of each REPL, and those of the place.

    Raises:
        ConfigError: a name is nearly that of a setting of REPLs.
    """
    session = {name: value for name, value in given.items() if name in _SESSION_OPTIONS}
    options = {name: value for name, value in given.items() if name not in _SESSION_OPTIONS}
    for name in options:
        near = difflib.get_close_matches(name, _SESSION_OPTIONS, n=1)
        if near:
            raise ConfigError(f"environment_kwargs has no {name!r}; did you mean {near[0]!r}?")
    return session, options


def check_session(environment: Environment, session: Mapping[str, Any]) -> None:
    """
    Args:
        session: the settings of each REPL.

    Raises:
        ConfigError: one does not fit, or this place cannot have it.
    """
    spec = SessionSpec(**session)
    resource_limits.checked(spec)
    check_place = getattr(environment, "check", None)
    if check_place is not None:
        check_place(spec)
