"""The client for a rollout's endpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import verifiers.v1 as vf
from verifiers.v1.clients.base import join_url
from verifiers.v1.configs import client as client_config

from rlm.clients.base import Client, ModelReply
from rlm.clients.openai import OpenAIClient
from rlm.errors import ConfigError
from rlm.types import Message, SamplingArgs

# With so many retries a call fails about a minute after its server goes away: a restart must not end all rollouts.
_RETRIES = 8


class EndpointClient(Client):
    """Sends every call through verifiers' interception endpoint, and asks the model server for the model's window.

    In verifiers 0.3 one prompt over the window, of any sub-call, ends the whole rollout. An engine that knows the window
    refuses the prompt before it is sent. `/v1/models` reports the window, but verifiers 0.3 does not pass it on.
    """

    def __init__(
        self, ctx: vf.ModelContext, endpoint: str, secret: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            ctx: model and server behind the endpoint.
            endpoint: URL without `/chat/completions`, as `Harness.launch` gets it.
            secret: bearer token of this rollout.
            headers: HTTP headers of every call.
        """
        # Reasoning is sent back with its reply, because verifiers recognises the earlier turn by the whole message.
        self._calls = OpenAIClient(
            ctx.model,
            base_url=endpoint,
            api_key=secret,
            max_retries=_RETRIES,
            echo_reasoning=True,
            default_headers=headers,
        )
        self.model = self._calls.model
        self._reply = reply_limit(ctx)
        self._server: OpenAIClient | None = None
        with contextlib.suppress(ConfigError):  # the calls will report what is wrong with the URL
            self._server = server_client(ctx)

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingArgs | None = None,
        model: str | None = None,
    ) -> ModelReply:
        return await self._calls.complete(messages, sampling=sampling, model=model)

    async def context_length(self, model: str | None = None) -> int | None:
        return (
            None
            if self._server is None
            else prompt_limit(await self._server.context_length(model), self._reply)
        )


def reply_limit(ctx: vf.ModelContext) -> int:
    """Most tokens of a reply by the run's sampling; 0 if it sets no limit."""
    given = ctx.sampling.model_dump(exclude_none=True)
    given = {**(given.get("extra_body") or {}), **given}
    return int(given.get("max_tokens") or given.get("max_completion_tokens") or 0)


def prompt_limit(window: int | None, reply: int) -> int | None:
    """Most tokens of a prompt: the window less the longest reply. Servers refuse a longer prompt, with a message that makes
    verifiers 0.3 end the rollout."""
    return None if window is None else max(1, window - reply)


def server_client(ctx: vf.ModelContext, sampling: SamplingArgs | None = None) -> OpenAIClient:
    """A client for the model server behind the endpoint.

    `ctx.model` is the name that the trainer gave this rollout at its start, such as the name of a LoRA adapter. The
    endpoint writes the same name into every call of the rollout.

    Args:
        ctx: the rollout's model and server.
        sampling: fields of every request.

    Raises:
        ConfigError: the URL cannot be the URL of a model server.
    """
    config = ctx.client
    return OpenAIClient(
        ctx.model,
        base_url=join_url(config.base_url, "/v1/models").removesuffix("/models"),
        api_key=client_config.resolve_api_key(config),
        default_headers=_headers(config),
        sampling_args=sampling,
        max_retries=_RETRIES,
        echo_reasoning=True,
    )


def _headers(config: vf.BaseClientConfig) -> dict[str, str]:
    if hasattr(client_config, "resolve_headers"):  # from 0.4 on
        return dict(client_config.resolve_headers(config))
    return dict(config.headers or {})
