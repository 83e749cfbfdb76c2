"""The options of commands that name models and their servers."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from typing import Any

from rlm.cli.completion import suggest
from rlm.cli.values import add_values, values_of
from rlm.errors import ConfigError


@dataclass(slots=True)
class ClientOptions:
    """`backend` and `backend_kwargs` of one model."""

    backend: str
    kwargs: dict[str, Any] = field(default_factory=dict)


def add_server_options(group: argparse._ActionsContainer) -> None:
    """Adds the options that name one server and its model."""
    group.add_argument(
        "-m", "--model", help="name of the model at the provider; not needed if the server has one model only"
    )
    backend = group.add_argument(
        "--backend",
        help="a provider, as `rlm doctor` lists them (default: vllm with --base-url, else openai)",
    )
    suggest(backend, _backends)
    group.add_argument(
        "--base-url",
        metavar="URL",
        help="URL of an OpenAI-compatible server, such as http://localhost:8000/v1",
    )
    group.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="environment variable that holds the key, in place of the provider's own variable",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the root's model and the sub-model."""
    group = parser.add_argument_group(
        "model",
        "Without --backend and --base-url, RLM_BASE_URL, RLM_MODEL and RLM_API_KEY name a server, its model and its key.",
    )
    add_server_options(group)
    add_values(
        group, "--backend-option", "another setting of the provider, such as timeout=60 or max_retries=2"
    )
    group = parser.add_argument_group(
        "sub-model: answers the calls that the code makes (default: the same model)"
    )
    group.add_argument("--sub-model", metavar="MODEL", help="name of the sub-model")
    backend = group.add_argument("--sub-backend", metavar="BACKEND", help="its provider, if that differs")
    suggest(backend, _backends)
    group.add_argument("--sub-base-url", metavar="URL", help="its server, if that differs")
    group.add_argument(
        "--sub-api-key-env", metavar="VAR", help="variable that holds its key, if that differs"
    )


def server_options(options: argparse.Namespace) -> ClientOptions:
    """The server that the options name, else the one that the environment names. The model's name may be missing.

    Raises:
        ConfigError: the environment variable for the key is not set.
    """
    model, url, backend = options.model, options.base_url, options.backend
    key = None if options.api_key_env is None else _key(options.api_key_env)
    if url is None and backend is None:
        url = os.environ.get("RLM_BASE_URL") or None
        model = model or os.environ.get("RLM_MODEL") or None
        if url is not None:  # RLM_API_KEY goes to the server of RLM_BASE_URL only
            key = key or os.environ.get("RLM_API_KEY") or None
    return _client(backend, model, url, key)


def client_options(options: argparse.Namespace) -> tuple[ClientOptions, ClientOptions | None]:
    """The root's model and the sub-model; None for the sub-model if it is the root's model. A model's name may be missing.

    Raises:
        ConfigError: a setting does not fit.
    """
    root = server_options(options)
    further = values_of("--backend-option", options.backend_option)
    if "api_key" in further:
        raise ConfigError("other users can read a key on a command line: name a variable with --api-key-env")
    root.kwargs.update(further)
    sub_key = None if options.sub_api_key_env is None else _key(options.sub_api_key_env)
    if options.sub_backend is not None or options.sub_base_url is not None:
        return root, _client(options.sub_backend, options.sub_model, options.sub_base_url, sub_key)
    if options.sub_model is None and sub_key is None:
        return root, None
    sub = ClientOptions(root.backend, dict(root.kwargs))
    if options.sub_model is not None:
        sub.kwargs["model_name"] = options.sub_model
    if sub_key is not None:
        sub.kwargs["api_key"] = sub_key
    return root, sub


async def name_model(client: ClientOptions, option: str) -> None:
    """Fills in the model's name if it is missing and the server has one model only.

    Args:
        option: the option that names the model, for messages.

    Raises:
        ConfigError: the server has several models, or no server is known.
        ModelError: the server cannot be reached, or refused to list its models.
    """
    if client.kwargs.get("model_name"):
        return
    url = client.kwargs.get("base_url")
    if url is None:
        raise ConfigError(f"no model was named: give its name with {option}")
    from rlm.cli.servers import list_models

    models = await list_models(url, client.kwargs.get("api_key"))
    if len(models) != 1:
        names = ", ".join(model.name for model in models[:20]) or "none"
        raise ConfigError(f"no model was named: give its name with {option}. {url} has {names}")
    client.kwargs["model_name"] = models[0].name


def _client(backend: str | None, model: str | None, url: str | None, key: str | None) -> ClientOptions:
    kwargs = {"model_name": model, "base_url": url, "api_key": key}
    given = {name: value for name, value in kwargs.items() if value is not None}
    return ClientOptions(backend or ("openai" if url is None else "vllm"), given)


def _backends() -> list[str]:
    from rlm.clients import backends

    return backends()


def _key(variable: str) -> str:
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"the environment variable {variable}, which should hold the key, is not set")
    return key
