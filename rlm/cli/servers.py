"""The models that a server lists."""

from __future__ import annotations

from dataclasses import dataclass

from rlm.errors import AuthenticationError, BadReplyError, ModelNotFoundError, ModelUnavailableError

_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a server."""

    name: str
    window: int | None
    """Window in tokens; None: the server does not list it."""


async def list_models(base_url: str, api_key: str | None = None) -> list[ServedModel]:
    """Asks an OpenAI-compatible server for its models (`GET /models`).

    Raises:
        ConfigError: the URL or the key cannot be used.
        ModelError: the server sent no list of models within 10 s.
    """
    from yarl import URL

    from rlm.clients import chat_format, pool
    from rlm.clients.arguments import checked_url, headers_of
    from rlm.clients.failures import redact

    base = URL(checked_url(base_url), encoded=True)
    headers, secrets = headers_of(api_key, None)
    connections = await pool.pool_for(base.origin())
    try:
        response = await connections.request(
            "GET", URL(f"{base}/models", encoded=True), headers=headers, timeout=_TIMEOUT
        )
    except pool.TransportError as error:
        raise ModelUnavailableError(redact(f"{base}: {error}", secrets)) from None
    if response.status in (401, 403):
        raise AuthenticationError(
            f"{base} refused the key (HTTP {response.status})"
            if api_key
            else f"{base} wants a key: name its environment variable with --api-key-env",
            status=response.status,
        )
    if response.status == 404:
        raise ModelNotFoundError(
            f"{base} has no /models (HTTP 404); a base URL usually ends in /v1", status=404
        )
    if response.status != 200:
        raise ModelUnavailableError(f"{base}/models: HTTP {response.status}", status=response.status)
    entries = chat_format.decode_models(response.body)
    if entries is None:
        raise BadReplyError(f"{base}/models is no list of models", status=response.status)
    return [ServedModel(str(entry.get("id")), chat_format.window_of(entry)) for entry in entries]
