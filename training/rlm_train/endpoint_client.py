"""A rollout's endpoint, as a model of the engine."""

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

# A call is given up about a minute after its server went away: a restart should not cost the rollouts of all workers.
_RETRIES = 8


class EndpointClient(Client):
    """Sends every call through verifiers' interception, and asks the model server itself for the model's window.

    verifiers 0.3 does not pass `/v1/models` on, and there one prompt over the window, of any sub-call, ends the
    whole rollout. The engine refuses such a prompt before it is sent, if it knows the window.
    """

    def __init__(
        self, ctx: vf.ModelContext, endpoint: str, secret: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            ctx: whose model and server the endpoint stands for.
            endpoint: the URL before `/chat/completions`, as `Harness.launch` gets it.
            secret: the bearer token of this rollout.
            headers: sent with every call.
        """
        # Thinking goes back with its reply: verifiers finds the earlier turn again by the whole message.
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
        with contextlib.suppress(ConfigError):  # the calls themselves will say what is wrong with the URL
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
    """Tokens that the run's sampling lets a reply have; 0 if it does not say."""
    given = ctx.sampling.model_dump(exclude_none=True)
    given = {**(given.get("extra_body") or {}), **given}
    return int(given.get("max_tokens") or given.get("max_completion_tokens") or 0)


def prompt_limit(window: int | None, reply: int) -> int | None:
    """Tokens that a prompt may have. Servers refuse one that leaves no room for as long a reply as was asked for, in
    words that verifiers 0.3 takes for the end of the rollout."""
    return None if window is None else max(1, window - reply)


def server_client(ctx: vf.ModelContext, sampling: SamplingArgs | None = None) -> OpenAIClient:
    """A client for the model server behind the endpoint.

    `ctx.model` is the name that the trainer gave this rollout when it began, such as the LoRA adapter's; the endpoint
    writes the same name into every call of the rollout.

    Args:
        sampling: fields of every request.

    Raises:
        ConfigError: the URL cannot be one of a model server.
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
