"""Sub-calls that go straight to the model server and bypass the rollout's endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.types import Usage as VerifiersUsage
from yarl import URL

from rlm.clients import pool
from rlm.clients.base import Client, ModelReply
from rlm.errors import ConfigError, ModelError
from rlm.types import Message, SamplingArgs
from rlm_train.endpoint_client import prompt_limit, reply_limit, server_client
from rlm_train.rollout_info import DirectUsage

# Sampling fields that a trainer sets to get more than the text. Nothing reads them in the replies to sub-calls.
_FOR_TRAINING = {
    *("logprobs", "top_logprobs", "prompt_logprobs"),
    *("return_token_ids", "return_tokens_as_token_ids", "return_routed_experts"),
}

# Seconds.
_PROBE_TIMEOUT = 30.0


class DirectClient(Client):
    """Calls the run's model at its own server, with the name, key, headers and sampling that the endpoint would use.

    The calls are recorded in no trace and are not trained; `usage` sums them up. They send no session id: with one, a
    router would send all sub-calls of a rollout to one engine. All rollouts of an event loop share the connections.
    """

    def __init__(self, ctx: vf.ModelContext, usage: DirectUsage | None = None) -> None:
        """
        Args:
            ctx: the rollout's model, server and sampling.
            usage: sum that each call is added to; a new one if None.

        Raises:
            ConfigError: the client's URL cannot be the URL of a model server.
        """
        self._client = server_client(ctx, _sampling(ctx))
        self.model = self._client.model
        self._reply = reply_limit(ctx)
        self.usage = DirectUsage() if usage is None else usage

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingArgs | None = None,
        model: str | None = None,
    ) -> ModelReply:
        usage = self.usage
        usage.calls += 1
        started = time.perf_counter()
        try:
            reply = await self._client.complete(messages, sampling=sampling, model=model)
        except ModelError:
            usage.failures += 1
            raise
        finally:
            usage.seconds += time.perf_counter() - started
        usage.retries += reply.retries
        usage.input_tokens += reply.usage.input_tokens
        usage.cached_tokens += reply.usage.cached_tokens
        usage.output_tokens += reply.usage.output_tokens
        return reply

    async def context_length(self, model: str | None = None) -> int | None:
        return prompt_limit(await self._client.context_length(model), self._reply)

    async def check(self) -> None:
        """Checks that the server has chat completions. A training server may serve tokens only, and then every sub-call
        would fail. Asks once per event loop and server; a server that does not answer passes.

        Raises:
            ConfigError: the server has no chat completions.
        """
        url = URL(f"{self._client.base_url}/chat/completions", encoded=True)
        connections = await pool.pool_for(url.origin())
        key = f"chat completions at {url}"
        known: asyncio.Task[int | None] | None = connections.memo.get(key)
        if known is None or (known.done() and (known.cancelled() or known.result() is None)):
            # A separate task: the rollout that asks first may be cancelled while others wait for the answer.
            known = connections.memo[key] = asyncio.create_task(_probe(connections, url))
        if await asyncio.shield(known) in (404, 405):
            raise ConfigError(
                f'train_subcalls = "direct" needs chat completions at {url}, and the server has none; '
                'use "mask", which sends sub-calls through the endpoint'
            )


async def _probe(connections: pool.Pool, url: URL) -> int | None:
    """The HTTP status for a request without messages, which costs no model call; None if the server does not answer."""
    headers = {"Content-Type": "application/json"}
    try:
        answer = await connections.request("POST", url, headers=headers, body=b"{}", timeout=_PROBE_TIMEOUT)
    except pool.TransportError:
        return None
    return answer.status


def _sampling(ctx: vf.ModelContext) -> SamplingArgs:
    """The run's sampling as fields of a chat completion."""
    given: dict[str, Any] = ctx.sampling.model_dump(exclude_none=True)
    given = {**(given.pop("extra_body", None) or {}), **given}
    given = {name: value for name, value in given.items() if name not in _FOR_TRAINING}
    # A training client renders the root's prompts itself. The server renders these prompts, with the same setting.
    thinking = getattr(getattr(ctx.client, "renderer", None), "enable_thinking", None)
    if thinking is not None:
        template = given.get("chat_template_kwargs") or {}
        given["chat_template_kwargs"] = {"enable_thinking": thinking, **template}
    return given


def verifiers_usage(usage: DirectUsage) -> VerifiersUsage:
    """The usage in verifiers' form, which counts cached tokens apart from the prompt's others."""
    return VerifiersUsage(
        prompt_tokens=usage.input_tokens - usage.cached_tokens,
        completion_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_tokens,
    )
