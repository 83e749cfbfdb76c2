"""Backends by name: those that come with the package, and those that a program adds."""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any

from rlm.clients.base import Client
from rlm.clients.options import is_str
from rlm.errors import ConfigError

Factory = Callable[..., Client]
"""Makes a client from the entries of `backend_kwargs`, which are its keyword arguments. Raises ConfigError where they do
not fit."""

# Imported when they are asked for: one brings aiohttp, another a vendor's SDK.
_BUILT_IN = {
    **dict.fromkeys(
        ("openai", "vllm", "openrouter", "vercel", "portkey", "azure_openai"), "rlm.clients.gateways"
    ),
    "anthropic": "rlm.clients.anthropic",
    "gemini": "rlm.clients.gemini",
}
_added: dict[str, Factory] = {}

# Not options of a client but fields of a request, which people write among them.
_SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n"),
    *("frequency_penalty", "presence_penalty", "reasoning_effort", "response_format", "extra_body"),
    *("logit_bias", "thinking", "thinking_config", "max_output_tokens", "stop_sequences"),
}


def register_backend(name: str, factory: Factory, *, replace: bool = False) -> None:
    """Makes a provider known, so that `backend=name` means it everywhere.

        def acme(model_name: str, *, api_key: str | None = None) -> Client: ...

        register_backend("acme", acme)
        RLM(backend="acme", backend_kwargs={"model_name": "acme-1"})

    Args:
        factory: returns a client, given `backend_kwargs` as keyword arguments. A misspelt one is named before it is
            called, unless its signature has `**kwargs`.
        replace: the name may be taken.

    Raises:
        ConfigError: the name is taken, or the arguments are not a name and a function.
    """
    if not is_str(name):
        raise ConfigError(f"the name of a backend must be a str, not {name!r}")
    if not callable(factory):
        raise ConfigError(f"the factory of backend {name!r} must be a function that returns a client")
    if name in backends() and not replace:
        raise ConfigError(f"there is a backend {name!r} already; give replace=True to take its place")
    _added[name] = factory


def backends() -> list[str]:
    """The names that `backend` may have."""
    return [*_BUILT_IN, *(name for name in _added if name not in _BUILT_IN)]


def make_client(backend: str, **backend_kwargs: Any) -> Client:
    """Makes the client of a provider.

    Args:
        backend: one of `backends()`.
        backend_kwargs: `model_name`, and what the provider takes besides: see docs/providers.md, or the function of that
            name in `rlm.clients.gateways`, `rlm.clients.anthropic` and `rlm.clients.gemini`.

    Raises:
        ConfigError: the backend or an argument is unknown or missing or does not fit, or its SDK is not installed.
    """
    factory = _factory(backend)
    known = _options(factory)
    for name in backend_kwargs:
        if known is not None and name not in known:
            hint = (
                f"; a sampling argument goes into sampling_args={{{name!r}: ...}}"
                if name in _SAMPLING and "sampling_args" in known
                else _nearest(name, known)
            )
            raise ConfigError(f"backend {backend!r} takes no {name!r}{hint}")
    required = inspect.signature(factory).parameters.get("model_name")
    is_required = required is not None and required.default is inspect.Parameter.empty
    if is_required and not backend_kwargs.get("model_name"):
        raise ConfigError(f"backend {backend!r} needs model_name in backend_kwargs")
    return factory(**backend_kwargs)


def _factory(backend: str) -> Factory:
    if backend in _added:
        return _added[backend]
    if backend not in _BUILT_IN:
        raise ConfigError(f"there is no backend {backend!r}{_nearest(backend, backends())}")
    factory: Factory = getattr(importlib.import_module(_BUILT_IN[backend]), backend)
    return factory


def _options(factory: Factory) -> list[str] | None:
    """The keyword arguments that a factory takes; None if it takes any."""
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


def _nearest(name: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
