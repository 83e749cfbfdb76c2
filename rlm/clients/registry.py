"""Backends by name: those that come with the package, and those that a program adds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rlm._registry import Registry
from rlm.clients.base import Client, check_client
from rlm.errors import ConfigError

ClientFactory = Callable[..., Client]
"""Makes a client from the entries of `backend_kwargs`, which are its keyword arguments. Raises ConfigError where they do
not fit."""

_OPENAI_FAMILY = ("openai", "vllm", "openrouter", "vercel", "portkey", "azure_openai")
_registry: Registry[Client] = Registry(
    "backend",
    {
        **{name: ("rlm.clients.gateways", name) for name in _OPENAI_FAMILY},
        "anthropic": ("rlm.clients.anthropic", "anthropic"),
        "gemini": ("rlm.clients.gemini", "gemini"),
    },
)

# Not options of a client but fields of a request, which people write among them.
_SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n"),
    *("frequency_penalty", "presence_penalty", "reasoning_effort", "response_format", "extra_body"),
    *("logit_bias", "thinking", "thinking_config", "max_output_tokens", "stop_sequences"),
}


def register_backend(name: str, factory: ClientFactory, *, replace: bool = False) -> None:
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
    _registry.register(name, factory, replace=replace)


def backends() -> list[str]:
    """The names that `backend` may have."""
    return _registry.names()


def make_client(backend: str, **backend_kwargs: Any) -> Client:
    """Makes the client of a provider.

    Args:
        backend: one of `backends()`.
        backend_kwargs: `model_name`, and what the provider takes besides: see docs/providers.md, or the function of that
            name in `rlm.clients.gateways`, `rlm.clients.anthropic` and `rlm.clients.gemini`.

    Raises:
        ConfigError: the backend or an argument is unknown or missing or does not fit, or its SDK is not installed.
    """
    required = inspect.signature(_registry.factory(backend)).parameters.get("model_name")
    is_required = required is not None and required.default is inspect.Parameter.empty
    if is_required and not backend_kwargs.get("model_name"):
        # After the names: a misspelt one is more to the point.
        _registry.check(backend, backend_kwargs, _hint)
        raise ConfigError(f"backend {backend!r} needs model_name in backend_kwargs")
    client = _registry.make(backend, backend_kwargs, _hint)
    check_client(f"what backend {backend!r} makes", client)
    return client


def _hint(option: str, known: list[str]) -> str:
    if option in _SAMPLING and "sampling_args" in known:
        return f"; a sampling argument goes into sampling_args={{{option!r}: ...}}"
    return ""
