"""A model that a policy answers for: with a window, token limits, usage and faults. The client and the server share it."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlm.testing.policy import ChatRequest, Fault, Policy, Reply
from rlm.testing.tokens import CHARS_PER_TOKEN, PrefixCache, count_tokens, render
from rlm.types import Usage

logger = logging.getLogger("rlm.testing")

_ANSWERS = (str, Reply, Fault)  # checked first, because `isawaitable` is slow


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply as it is sent."""

    content: str | None
    reasoning: str | None
    finish_reason: str
    refusal: str | None
    usage: Usage


class ScriptedModel:
    """One policy under one or several model names."""

    def __init__(
        self,
        policy: Policy,
        *,
        models: Sequence[str] | None,
        max_model_len: int | None,
        latency: float,
        record: bool,
    ) -> None:
        if not callable(policy):
            raise TypeError(f"a policy is a function of a ChatRequest, not a {type(policy).__name__}")
        if max_model_len is not None and max_model_len < 1:
            raise ValueError(f"max_model_len must be positive, not {max_model_len}")
        if latency < 0:
            raise ValueError(f"latency must not be negative, but is {latency}")
        self.policy = policy
        self.models = models
        self.max_model_len = max_model_len
        self.latency = latency
        self.record = record
        self.requests: list[ChatRequest] = []
        self.in_flight = 0
        self.peak = 0
        self._cache = PrefixCache()

    async def answer(self, request: ChatRequest) -> Completion | Fault:
        """The model's answer to a request. Raises nothing but cancellation."""
        if self.record:
            self.requests.append(request)
        with self._counted():
            return await self._answer(request)

    async def ask(self, request: ChatRequest) -> Reply | Fault:
        """The policy's answer to a request. Names, window, token limit and recorded requests are left to the caller, which may
        count tokens in its own way. Raises nothing but cancellation."""
        with self._counted():
            return await self._ask(request)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    async def _answer(self, request: ChatRequest) -> Completion | Fault:
        if self.models is not None and request.model not in self.models:
            return unknown_model(request.model)
        prompt = render(request.messages)
        size = count_tokens(prompt)
        wanted = request.sampling.get("max_completion_tokens") or request.sampling.get("max_tokens")
        if wanted is not None and (type(wanted) is not int or wanted < 1):
            return error(
                400, f"max_tokens must be at least 1, got {wanted!r}.", "BadRequestError", "max_tokens"
            )
        refused = too_long(size, wanted, self.max_model_len)
        if refused is not None:
            return refused
        cached = self._cache.lookup(prompt)
        reply = await self._ask(request)
        if isinstance(reply, Fault):
            return reply
        limits = [limit for limit in (wanted, self._room(size)) if limit is not None]
        completion = _cut(reply, min(limits, default=None), size, cached)
        self._cache.store(f"{prompt}{completion.reasoning or ''}{completion.content or ''}</>")
        return completion

    async def _ask(self, request: ChatRequest) -> Reply | Fault:
        if self.latency:
            await asyncio.sleep(self.latency)
        try:
            answer = self.policy(request)
            if not isinstance(answer, _ANSWERS) and inspect.isawaitable(answer):
                answer = await answer
        except Exception as exc:
            logger.exception("the policy failed")
            fault = error(500, f"the policy failed: {type(exc).__name__}: {exc}", "PolicyError")
            return Fault(500, body=fault.body, headers={"x-should-retry": "false"})
        reply = _as_reply(answer)
        if reply is None:
            text = f"the policy returned a {type(answer).__name__}, not a str, Reply or Fault"
            fault = error(500, text, "PolicyError")
            return Fault(500, body=fault.body, headers={"x-should-retry": "false"})
        if reply.delay:
            await asyncio.sleep(reply.delay)
        if isinstance(reply, Fault):
            return reply if reply.body is not None or reply.drop else error_of(reply)
        return reply

    def _room(self, size: int) -> int | None:
        return None if self.max_model_len is None else self.max_model_len - size


def unknown_model(name: str) -> Fault:
    """vLLM's refusal of a model that it does not serve."""
    return error(404, f"The model `{name}` does not exist.", "NotFoundError", "model")


def too_long(size: int, wanted: int | None, window: int | None) -> Fault | None:
    """vLLM's refusal of a request that does not fit into the window, in vLLM's words; None if it fits.

    Args:
        size: tokens of the prompt.
        wanted: token limit of the reply; None: the request has none.
        window: tokens of the model's window; None: there is no limit.
    """
    if window is None:
        return None
    if size >= window:
        text = (
            f"This model's maximum context length is {window} tokens. However, your request has {size} input "
            "tokens. Please reduce the length of the input messages."
        )
        return error(400, text, "BadRequestError", "input_tokens")
    if wanted is not None and size + wanted > window:
        text = (
            f"'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This model's maximum context length "
            f"is {window} tokens and your request has {size} input tokens ({wanted} > {window} - {size})."
        )
        return error(400, text, "BadRequestError", "max_tokens")
    return None


def error(status: int, message: str, kind: str, param: str | None = None) -> Fault:
    """A refusal in the form of vLLM."""
    return Fault(status, body={"error": {"message": message, "type": kind, "param": param, "code": status}})


def error_of(fault: Fault) -> Fault:
    """The fault with a body that holds its message."""
    body = error(fault.status, fault.message, "ScriptedFault").body
    return Fault(fault.status, fault.message, body, fault.headers)


def body_bytes(fault: Fault) -> bytes:
    """The body of a fault as it is sent."""
    body = fault.body if fault.body is not None else error_of(fault).body
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return json.dumps(body).encode()


def chat_completion(completion: Completion, model: str, number: int) -> dict[str, Any]:
    """The body of a chat completion. Equal replies give equal bodies: it holds no time and no random id."""
    message: dict[str, Any] = {"role": "assistant", "content": completion.content}
    if completion.reasoning is not None:
        message["reasoning_content"] = completion.reasoning
    if completion.refusal is not None:
        message["refusal"] = completion.refusal
    usage: dict[str, Any] = {
        "prompt_tokens": completion.usage.input_tokens,
        "completion_tokens": completion.usage.output_tokens,
        "total_tokens": completion.usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.usage.cached_tokens},
    }
    if completion.usage.cost is not None:
        usage["cost"] = completion.usage.cost
    choice = {"index": 0, "message": message, "finish_reason": completion.finish_reason, "logprobs": None}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def _as_reply(answer: object) -> Reply | Fault | None:
    if isinstance(answer, str):
        return Reply(answer)
    return answer if isinstance(answer, Reply | Fault) else None


def _cut(reply: Reply, limit: int | None, prompt: int, cached: int) -> Completion:
    """The reply, cut at the token limit. Thinking comes first, then text."""
    reasoning, content, finish = reply.reasoning, reply.content, reply.finish_reason
    if limit is not None and count_tokens(f"{reasoning or ''}{content or ''}") > limit:
        room = limit * CHARS_PER_TOKEN
        finish = "length"
        if reasoning is not None:
            reasoning = reasoning[:room]
            room -= len(reasoning)
        if content is not None:
            content = content[:room] if room > 0 else None
    written = count_tokens(f"{reasoning or ''}{content or ''}")
    return Completion(
        content, reasoning, finish, reply.refusal, reply.usage or Usage(prompt, written, None, cached)
    )
