"""The checks of `rlm doctor` on providers and model servers."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rlm.cli.finding import Finding
from rlm.cli.model_options import name_model, server_options
from rlm.errors import ConfigError, RLMError


def provider(backend: str) -> Finding:
    """Whether a backend has its key and its SDK."""
    from rlm.clients import make_client

    try:
        make_client(backend, model_name="none")
    except ConfigError as error:
        return Finding(backend, "off", str(error))
    return Finding(backend, "ok", "has its key", data={"model_source": backend})


async def server(options: argparse.Namespace) -> list[Finding]:
    """The server that the options or the environment name, and its model. Empty: they name none."""
    try:
        client = server_options(options)
    except ConfigError as error:
        return [Finding("server", "failed", str(error))]
    findings: list[Finding] = []
    if client.kwargs.get("base_url"):
        findings.append(await _models(client.kwargs))
        if findings[0].status == "failed":
            return findings
    if options.call:
        try:
            await name_model(client, "--model")
            findings.append(await _call(client.backend, client.kwargs))
        except RLMError as error:
            findings.append(Finding("call", "failed", str(error)))
    return findings


async def _models(kwargs: dict[str, Any]) -> Finding:
    from rlm.cli.servers import list_models

    url, wanted = kwargs["base_url"], kwargs.get("model_name")
    try:
        models = await list_models(url, kwargs.get("api_key"))
    except RLMError as error:
        return Finding("server", "failed", str(error), "start the server, or correct --base-url")
    shown = ", ".join(
        f"{model.name} ({model.window:,} tokens)" if model.window is not None else model.name
        for model in models[:10]
    )
    data = {
        "base_url": url,
        "models": [{"name": model.name, "window": model.window} for model in models],
        "model_source": url,
    }
    if len(models) > 10:
        shown += f" and {len(models) - 10} more"
    if wanted is not None and wanted not in [model.name for model in models]:
        return Finding(
            "server", "failed", f"{url} has no model {wanted!r}", f"it has {shown or 'none'}", data
        )
    return Finding("server", "ok", f"{url}: {shown or 'no models'}", data=data)


async def _call(backend: str, kwargs: dict[str, Any]) -> Finding:
    from rlm.clients import make_client

    started = time.perf_counter()
    client = make_client(backend, **{"max_retries": 0, **kwargs})
    reply = await client.complete([{"role": "user", "content": "Say ok."}])
    seconds = time.perf_counter() - started
    tokens = reply.usage.input_tokens + reply.usage.output_tokens
    return Finding(
        "call",
        "ok",
        f"{client.model} answered in {seconds:.2f} s, {tokens:,} tokens",
        data={"model": client.model, "seconds": seconds, "tokens": tokens, "model_source": client.model},
    )
