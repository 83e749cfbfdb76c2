"""Backends by name: the built-in ones, and those that a program registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rlm._registry import Registry
from rlm.clients.base import Client, check_client
from rlm.errors import ConfigError

ClientFactory = Callable[..., Client]
"""Makes a client. Its keyword arguments are the entries of `backend_kwargs`. It raises ConfigError if one of them does not
fit."""

_OPENAI_FAMILY = ("openai", "vllm", "openrouter", "vercel", "portkey", "azure_openai")
_registry: Registry[Client] = Registry(
    "backend",
    {
        **{name: ("rlm.clients.gateways", name) for name in _OPENAI_FAMILY},
        "anthropic": ("rlm.clients.anthropic", "anthropic"),
        "gemini": ("rlm.clients.gemini", "gemini"),
    },
)

# Fields of a request, which users often write among the options of a client.
_SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n"),
    *("frequency_penalty", "presence_penalty", "reasoning_effort", "response_format", "extra_body"),
    *("logit_bias", "thinking", "thinking_config", "max_output_tokens", "stop_sequences"),
}


def register_backend(name: str, factory: ClientFactory, *, replace: bool = False) -> None:
    """Registers a provider under a name for `backend=`.

        def acme(model_name: str, *, api_key: str | None = None) -> Client: ...

        register_backend("acme", acme)
        RLM(backend="acme", backend_kwargs={"model_name": "acme-1"})

    Args:
        name: the value of `backend=`.
        factory: returns a client, given `backend_kwargs` as keyword arguments. Arguments that its signature lacks are
            refused before it is called, unless the signature has `**kwargs`.
        replace: replace a provider of this name, if there is one.

    Raises:
        ConfigError: the name is taken, or the arguments are not a name and a function.
    """
    _registry.register(name, factory, replace=replace)


def backends() -> list[str]:
    """The values that `backend=` can have."""
    return _registry.names()


def make_client(backend: str, **backend_kwargs: Any) -> Client:
    """Makes the client of a provider.

    Args:
        backend: one of `backends()`.
        backend_kwargs: `model_name`, and the other arguments of the provider. docs/providers.md lists them, and the
            function of the provider's name in `rlm.clients.gateways`, `rlm.clients.anthropic` or `rlm.clients.gemini`
            documents them.

    Raises:
        ConfigError: the backend is unknown, an argument is unknown, missing or wrong, or the provider's SDK is not
            installed.
    """
    required = inspect.signature(_registry.factory(backend)).parameters.get("model_name")
    is_required = required is not None and required.default is inspect.Parameter.empty
    if is_required and not backend_kwargs.get("model_name"):
        # Names are checked first: a misspelt `model_name` should be reported as misspelt.
        _registry.check(backend, backend_kwargs, _hint)
        raise ConfigError(f"backend {backend!r} needs model_name in backend_kwargs")
    client = _registry.make(backend, backend_kwargs, _hint)
    check_client(f"what backend {backend!r} makes", client)
    return client


def _hint(option: str, known: list[str]) -> str:
    if option in _SAMPLING and "sampling_args" in known:
        return f"; a sampling argument goes into sampling_args={{{option!r}: ...}}"
    return ""
