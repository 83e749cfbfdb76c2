"""Backends that speak the OpenAI-compatible format: their URLs, their keys and their dialects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from rlm.clients import chat_format
from rlm.clients.arguments import checked_key, is_str, key_or_environment
from rlm.clients.openai import OPENAI_URL, OpenAIClient
from rlm.errors import ConfigError
from rlm.types import SamplingArgs

OPENROUTER_URL = "https://openrouter.ai/api/v1"
VERCEL_URL = "https://ai-gateway.vercel.sh/v1"
PORTKEY_URL = "https://api.portkey.ai/v1"

_OPENAI = chat_format.Dialect(tokens_field="max_completion_tokens")
_VLLM = chat_format.Dialect("vllm")


class GatewayOptions(TypedDict, total=False):
    """Arguments that all of these backends take; see `OpenAIClient`."""

    timeout: float
    max_retries: int
    retry_delay: float
    default_headers: Mapping[str, str] | None
    sampling_args: SamplingArgs | None
    echo_reasoning: bool
    max_tokens_field: chat_format.TokensField | None


def openai(
    model_name: str,
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    **options: Unpack[GatewayOptions],
) -> OpenAIClient:
    """OpenAI, or any OpenAI-compatible server that wants a key.

    Args:
        model_name: the model's name at the server.
        api_key: the key. None: OPENAI_API_KEY.
        base_url: the server's URL. None: OPENAI_BASE_URL, or else OpenAI's own URL.

    Raises:
        ConfigError: there is no key, or an argument does not fit.
    """
    key = key_or_environment(
        api_key, "OPENAI_API_KEY", "openai", " (for a server without keys use backend 'vllm')"
    )
    url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    dialect = _OPENAI if url.rstrip("/") == OPENAI_URL else chat_format.PLAIN
    return OpenAIClient(model_name, base_url=url, api_key=key, dialect=dialect, **options)


def vllm(
    model_name: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    **options: Unpack[GatewayOptions],
) -> OpenAIClient:
    """Any OpenAI-compatible server: vLLM, SGLang, llama.cpp, ... It reads no environment variable, so that no server gets
    another server's key.

    Raises:
        ConfigError: there is no URL, or an argument does not fit.
    """
    if not base_url:
        raise ConfigError("backend 'vllm' needs base_url, for instance http://127.0.0.1:8000/v1")
    return OpenAIClient(model_name, base_url=base_url, api_key=api_key, dialect=_VLLM, **options)


def openrouter(
    model_name: str,
    *,
    api_key: str | None = None,
    base_url: str = OPENROUTER_URL,
    app_url: str | None = None,
    app_title: str | None = None,
    **options: Unpack[GatewayOptions],
) -> OpenAIClient:
    """OpenRouter. It reports what each call cost, so `max_budget` needs no price.

    Args:
        model_name: "vendor/model".
        api_key: the key. None: OPENROUTER_API_KEY.
        app_url: URL of your program, under which OpenRouter ranks its use.
        app_title: name of your program there.

    Raises:
        ConfigError: there is no key, or an argument does not fit.
    """
    key = key_or_environment(api_key, "OPENROUTER_API_KEY", "openrouter")
    headers = {"HTTP-Referer": app_url, "X-OpenRouter-Title": app_title}
    dialect = chat_format.Dialect(
        "openrouter",
        extra_body={"usage": {"include": True}},
        reasoning_details=True,
        reports_cost=True,
    )
    return OpenAIClient(
        model_name, base_url=base_url, api_key=key, dialect=dialect, **_with_headers(options, headers)
    )


def vercel(
    model_name: str,
    *,
    api_key: str | None = None,
    base_url: str = VERCEL_URL,
    **options: Unpack[GatewayOptions],
) -> OpenAIClient:
    """Vercel's AI gateway.

    Args:
        model_name: "vendor/model".
        api_key: the key. None: AI_GATEWAY_API_KEY.

    Raises:
        ConfigError: there is no key, or an argument does not fit.
    """
    key = key_or_environment(api_key, "AI_GATEWAY_API_KEY", "vercel")
    dialect = chat_format.Dialect("vercel", reasoning_details=True)
    return OpenAIClient(model_name, base_url=base_url, api_key=key, dialect=dialect, **options)


def portkey(
    model_name: str,
    *,
    api_key: str | None = None,
    base_url: str = PORTKEY_URL,
    provider: str | None = None,
    virtual_key: str | None = None,
    config: str | Mapping[str, Any] | None = None,
    provider_api_key: str | None = None,
    **options: Unpack[GatewayOptions],
) -> OpenAIClient:
    """Portkey's gateway.

    Args:
        model_name: the model's name at the provider, or "@provider/model" for a model in Portkey's catalogue.
        api_key: Portkey's key. None: PORTKEY_API_KEY.
        provider: the provider that gets the call: "openai", "anthropic", ..., or "@name" for a stored integration.
        virtual_key: name of a provider's key that Portkey stores.
        config: id of a stored configuration, or a configuration.
        provider_api_key: the provider's key, if Portkey does not store it.

    Raises:
        ConfigError: there is no key, or an argument does not fit.
    """
    key = key_or_environment(api_key, "PORTKEY_API_KEY", "portkey")
    headers = {
        "x-portkey-provider": provider,
        "x-portkey-virtual-key": virtual_key,
        "x-portkey-config": config if config is None or isinstance(config, str) else json.dumps(dict(config)),
        "Authorization": provider_api_key and f"Bearer {checked_key(provider_api_key)}",
    }
    dialect = chat_format.Dialect("portkey", key_header="x-portkey-api-key")
    return OpenAIClient(
        model_name, base_url=base_url, api_key=key, dialect=dialect, **_with_headers(options, headers)
    )


def azure_openai(
    model_name: str | None = None,
    *,
    api_key: str | None = None,
    azure_endpoint: str | None = None,
    azure_deployment: str | None = None,
    api_version: str | None = None,
    base_url: str | None = None,
    **options: Unpack[GatewayOptions],
) -> OpenAIClient:
    """Azure OpenAI: its v1 endpoint, or with `api_version` the dated API, whose URLs name the deployment.

    Args:
        model_name: name under which usage is counted and priced. None: the deployment's name.
        api_key: the key. None: AZURE_OPENAI_API_KEY.
        azure_endpoint: https://<resource>.openai.azure.com. None: AZURE_OPENAI_ENDPOINT.
        azure_deployment: the deployment. None: AZURE_OPENAI_DEPLOYMENT, or else the model's name.
        api_version: date of the API, such as "2024-10-21". None: AZURE_OPENAI_API_VERSION, or else the v1 endpoint, which
            has no date.
        base_url: the whole URL before /chat/completions, in place of `azure_endpoint`. It must be a v1 endpoint.

    Raises:
        ConfigError: the key, the endpoint or the deployment is missing, or an argument does not fit.
    """
    key = key_or_environment(api_key, "AZURE_OPENAI_API_KEY", "azure_openai")
    deployment = azure_deployment or os.environ.get("AZURE_OPENAI_DEPLOYMENT") or model_name
    model = model_name or deployment
    if not is_str(model) or not is_str(deployment):
        raise ConfigError(
            "backend 'azure_openai' needs azure_deployment (or AZURE_OPENAI_DEPLOYMENT) or model_name, as a str"
        )
    version = api_version or os.environ.get("AZURE_OPENAI_API_VERSION")
    if base_url and azure_endpoint:
        raise ConfigError("give azure_endpoint or base_url, not both")
    if base_url:
        if api_version:
            raise ConfigError(
                "api_version goes with azure_endpoint: base_url names a v1 endpoint, which has no version"
            )
        url, version = base_url, None
    else:
        endpoint = azure_endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not endpoint:
            raise ConfigError(
                "backend 'azure_openai' needs azure_endpoint (or AZURE_OPENAI_ENDPOINT), "
                "for instance https://<resource>.openai.azure.com"
            )
        host = endpoint.strip().rstrip("/").removesuffix("/v1").removesuffix("/openai")
        url = f"{host}/openai" if version else f"{host}/openai/v1"
    if version and not all(c.isalnum() or c in "-." for c in version):
        raise ConfigError(f"api_version must be a date like '2024-10-21', not {version!r}")
    dated = f"/deployments/{{model}}/chat/completions?api-version={version}"
    dialect = chat_format.Dialect(
        "azure_openai",
        tokens_field="max_completion_tokens",
        key_header="api-key",
        chat_path=dated if version else "/chat/completions",
        deployments={model: deployment},
        lists_models=False,
    )
    return OpenAIClient(model, base_url=url, api_key=key, dialect=dialect, **options)


def _with_headers(options: GatewayOptions, headers: Mapping[str, str | None]) -> GatewayOptions:
    """The options with the headers that have a value. Headers of the caller take precedence."""
    given = {name: value for name, value in headers.items() if value is not None}
    merged: GatewayOptions = {**options}
    own = options.get("default_headers")
    if own is None or isinstance(own, Mapping):  # the client refuses anything else
        merged["default_headers"] = {**given, **(own or {})}
    return merged
