"""Clients of model providers.

`make_client` turns `backend` and `backend_kwargs` into a `Client`. Built: "openai" and "vllm", which between them speak
with every OpenAI-compatible server.
"""

from __future__ import annotations

import os
from typing import Any

from rlm.clients.base import Client, ModelReply
from rlm.errors import ConfigError

__all__ = ["BACKENDS", "Client", "ModelReply", "make_client"]

_NOT_BUILT = {
    "openrouter": "backend 'openai' with base_url='https://openrouter.ai/api/v1' and your key as api_key",
    "vercel": "backend 'openai' with base_url='https://ai-gateway.vercel.sh/v1' and your key as api_key",
    "portkey": "backend 'openai' with base_url='https://api.portkey.ai/v1' and your key in "
    "default_headers={'x-portkey-api-key': ...}",
    "azure_openai": "backend 'openai' with base_url='https://<resource>.openai.azure.com/openai/v1' and your key as "
    "api_key",
    "anthropic": "backend 'openai' with base_url='https://api.anthropic.com/v1' (its OpenAI-compatible endpoint) and "
    "your key as api_key",
    "gemini": "backend 'openai' with base_url='https://generativelanguage.googleapis.com/v1beta/openai' and your key "
    "as api_key",
}

BACKENDS = ("openai", "vllm", *_NOT_BUILT)
"""The names that `backend` may have. Those that are not built yet say so and name what to use instead."""


def make_client(backend: str, **backend_kwargs: Any) -> Client:
    """Makes the client of a provider.

    Args:
        backend: "openai" (OpenAI, or any server that speaks like it, at `base_url`) or "vllm" (any such server;
            needs `base_url`, and no key).
        backend_kwargs: `model_name` (required), `base_url`, `api_key`, `timeout`, `max_retries`, `retry_delay`,
            `default_headers`, `sampling_args`, `echo_reasoning`: see `rlm.clients.openai.OpenAIClient`. For "openai",
            `api_key` and `base_url` default to the environment variables OPENAI_API_KEY and OPENAI_BASE_URL. "vllm"
            reads no environment variable, so that no key goes to a server that it is not for.

    Raises:
        ConfigError: the backend or an argument is unknown, missing, does not fit, or is not built yet.
    """
    import inspect

    from rlm.clients.openai import OpenAIClient

    if backend in _NOT_BUILT:
        raise ConfigError(f"backend {backend!r} is not built yet; use {_NOT_BUILT[backend]}")
    if backend not in BACKENDS:
        raise ConfigError(f"there is no backend {backend!r}{_nearest(backend, BACKENDS)}")
    known = list(inspect.signature(OpenAIClient).parameters)
    for name in backend_kwargs:
        if name not in known:
            where = (
                f"; a sampling argument goes into sampling_args={{{name!r}: ...}}"
                if name in _SAMPLING
                else ""
            )
            raise ConfigError(f"backend {backend!r} takes no {name!r}{where or _nearest(name, known)}")
    options = dict(backend_kwargs)
    if not options.get("model_name"):
        raise ConfigError(f"backend {backend!r} needs model_name in backend_kwargs")
    if backend == "vllm":
        if not options.get("base_url"):
            raise ConfigError("backend 'vllm' needs base_url, for instance http://127.0.0.1:8000/v1")
    else:
        options["api_key"] = options.get("api_key") or os.environ.get("OPENAI_API_KEY")
        if not options["api_key"]:
            raise ConfigError(
                "backend 'openai' needs a key: give api_key in backend_kwargs or set OPENAI_API_KEY "
                "(for a server without keys use backend 'vllm')"
            )
        url = options.get("base_url") or os.environ.get("OPENAI_BASE_URL")
        options = (
            {**options, "base_url": url} if url else {k: v for k, v in options.items() if k != "base_url"}
        )
    return OpenAIClient(**options)


_SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n"),
    *(
        "frequency_penalty",
        "presence_penalty",
        "reasoning_effort",
        "response_format",
        "extra_body",
        "logit_bias",
    ),
}


def _nearest(name: object, known: tuple[str, ...] | list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
