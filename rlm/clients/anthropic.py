"""Anthropic's models, through its SDK (`pip install 'rlms[anthropic]'`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from rlm.clients import chat_format
from rlm.clients.arguments import key_or_environment
from rlm.clients.base import ModelReply
from rlm.clients.failures import Failure, failure_of
from rlm.clients.message_parts import MediaPart, PlainText, RemoteImage, parts_of
from rlm.clients.sdk import SDKClient, SDKOptions, stop_sequences, token_limit
from rlm.clients.usage import count, estimated
from rlm.errors import BadReplyError, ConfigError
from rlm.types import Content, Message, SamplingArgs, Usage

if TYPE_CHECKING:
    from anthropic.types import Message as AnthropicMessage

ANTHROPIC_URL = "https://api.anthropic.com"

_PROVIDER = "anthropic"
_LEAST_BUDGET = 1024  # tokens; the API refuses a smaller budget for thinking
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_EMPTY = "(empty)"  # the API refuses a message without text
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The HTTP status of an error by its type. An error inside a 200 has the type only."""
_OURS = ("system", "cache_control")


def anthropic(
    model_name: str,
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    max_tokens: int = 16_000,
    prompt_caching: bool = True,
    **options: Unpack[SDKOptions],
) -> AnthropicClient:
    """Anthropic's API.

    Args:
        model_name: the model's name.
        api_key: the key. None: ANTHROPIC_API_KEY.
        base_url: the API's URL. None: ANTHROPIC_BASE_URL, or else Anthropic's own URL.
        max_tokens: see `AnthropicClient`.
        prompt_caching: see `AnthropicClient`.

    Raises:
        ConfigError: there is no key, the SDK is not installed, or an argument does not fit.
    """
    return AnthropicClient(
        model_name,
        api_key=key_or_environment(api_key, "ANTHROPIC_API_KEY", "anthropic"),
        base_url=base_url or os.environ.get("ANTHROPIC_BASE_URL") or ANTHROPIC_URL,
        max_tokens=max_tokens,
        prompt_caching=prompt_caching,
        **options,
    )


class AnthropicClient(SDKClient[dict[str, Any], "AnthropicMessage"]):
    """A model behind Anthropic's Messages API.

    System messages become `system`. Thinking (sampling argument `thinking`) is `ModelReply.reasoning`. Its signed blocks are
    in `ModelReply.echo`, by which they are sent back unchanged. A refused reply has no content, so it is not sent back.
    """

    provider = _PROVIDER

    def __init__(
        self,
        model_name: str,
        *,
        api_key: str,
        base_url: str = ANTHROPIC_URL,
        max_tokens: int = 16_000,
        prompt_caching: bool = True,
        **options: Unpack[SDKOptions],
    ) -> None:
        """
        Args:
            max_tokens: token limit of a reply, thinking included, for calls that give none: the API needs one. If the limit of
                a call leaves no room for the budget for thinking, the budget is made smaller.
            prompt_caching: ask the API to cache the system prompt, and in a chat with several messages everything up to the
                last user message, for five minutes. Reading the cache is cheap; writing costs a quarter more than plain
                input. So a chat of one user message, such as a sub-call, is not cached.
            options: see `SDKClient`.

        Raises:
            ConfigError: the SDK is not installed, or an argument does not fit.
        """
        try:
            import anthropic as sdk
            import httpx2
        except ImportError:
            raise ConfigError(
                "backend 'anthropic' needs Anthropic's SDK: pip install 'rlms[anthropic]'"
            ) from None
        if type(max_tokens) is not int or max_tokens < 1:
            raise ConfigError(f"max_tokens must be a number of tokens, at least 1, not {max_tokens!r}")
        self._max_tokens = max_tokens
        self._caching = bool(prompt_caching)
        super().__init__(model_name, base_url=base_url, api_key=api_key, **options)
        self.sampling_args = {"max_tokens": max_tokens, **self._sampling}
        self._sdk = sdk.AsyncAnthropic(
            api_key=self._key,
            base_url=self._base.removesuffix("/v1"),
            max_retries=0,
            timeout=self._retry.timeout,
            default_headers=self._extra_headers,
            http_client=httpx2.AsyncClient(
                transport=self._transport.PoolTransport(self._retry.timeout), trust_env=False
            ),
        )

    def _prepare(
        self, name: str, messages: Sequence[Message], sampling: SamplingArgs | None
    ) -> dict[str, Any]:
        fields = chat_format.merge_sampling(self._sampling, sampling)
        fields.pop("n", None)
        for ours in _OURS:
            if ours in fields:
                raise ConfigError(f"{ours!r} is no sampling argument: the client sets it")
        limit, stop, thinking = token_limit(fields), stop_sequences(fields), fields.pop("thinking", None)
        if stop is not None:
            fields["stop_sequences"] = stop
        if thinking is not None:
            fields["thinking"] = _fit_budget(thinking, limit, self._max_tokens)
        system, chat = _chat(messages, name)
        if self._caching:
            _mark(system, chat)
        if system:
            fields["system"] = system
        # `extra_body`, because the SDK knows the sampling arguments of the newest models only. The API checks them.
        return {
            "model": name,
            "messages": chat,
            "max_tokens": self._max_tokens if limit is None else limit,
            "extra_body": fields,
        }

    async def _send(self, request: dict[str, Any]) -> AnthropicMessage:
        response: AnthropicMessage = await self._sdk.messages.create(**request, timeout=self._retry.timeout)
        return response

    def _read(
        self, name: str, response: AnthropicMessage, request_bytes: int, retries: int
    ) -> ModelReply | Failure:
        if str(getattr(response, "type", "")) == "error":  # a gateway's error inside a 200
            body = response.to_dict()
            error = body.get("error")
            kind = error.get("type") if isinstance(error, dict) else None
            return failure_of(_STATUS.get(str(kind), 502), {}, json.dumps(body).encode())
        if not isinstance(getattr(response, "content", None), list):
            raise BadReplyError("it has no content")
        blocks = [_kept(block.to_dict()) for block in response.content if block.type in _KEPT]
        content = "".join(block["text"] for block in blocks if block["type"] == "text")
        reasoning = "\n\n".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        usage = _usage(response, request_bytes, content + reasoning)
        refusal = None
        if response.stop_reason == "refusal":
            details = response.stop_details
            content, refusal = "", (details and details.explanation) or "the provider ended the reply"
        # The API refuses a message that ends in thinking. A reply of thinking alone is not sent back.
        signed = any(block["type"] != "text" for block in blocks) and blocks[-1]["type"] == "text"
        echo: Message | None = None
        if signed and content:
            echo = {
                "role": "assistant",
                "content": content,
                "native": {"provider": _PROVIDER, "model": name, "content": blocks},
            }
        return ModelReply(
            content=content,
            model=name,
            usage=usage,
            finish_reason=_FINISH.get(response.stop_reason or "", response.stop_reason),
            reasoning=reasoning or None,
            echo=echo,
            refusal=refusal,
            retries=retries,
        )

    async def _window(self, name: str) -> int | None:
        return (await self._sdk.models.retrieve(name)).max_input_tokens


_KEPT = {"text": ("text",), "thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}


def _kept(block: dict[str, Any]) -> dict[str, Any]:
    """The fields of a block that must be sent back."""
    return {"type": block["type"], **{name: block[name] for name in _KEPT[block["type"]] if name in block}}


def _chat(messages: Sequence[Message], model: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system prompt's blocks, and the other messages."""
    system: list[dict[str, Any]] = []
    chat: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "system":
            system += _blocks(message["content"], "a system message")
            continue
        native = message.get("native")
        if native and (native["provider"], native["model"]) == (_PROVIDER, model):
            content = native["content"]
        else:
            content = _blocks(message["content"], None)
        if not content and message["role"] == "assistant":
            continue  # the API joins the user messages around it
        chat.append({"role": message["role"], "content": content or [{"type": "text", "text": _EMPTY}]})
    if not chat:
        raise ConfigError("Anthropic's API needs a message besides the system prompt")
    return system, chat


def _blocks(content: Content, only_text: str | None) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in parts_of(content):
        match part:
            case PlainText(text):
                if text.strip():
                    blocks.append({"type": "text", "text": text})
                continue
            case _ if only_text:
                raise ConfigError(f"{only_text} can hold text only")
            case RemoteImage(url):
                source = {"type": "url", "url": url}
            case MediaPart(media_type, data):
                if media_type not in _IMAGES:
                    raise ConfigError(f"Anthropic's models take {', '.join(_IMAGES)}, not {media_type}")
                source = {"type": "base64", "media_type": media_type, "data": data}
        blocks.append({"type": "image", "source": source})
    return blocks


def _mark(system: list[dict[str, Any]], chat: list[dict[str, Any]]) -> None:
    """Marks what the API should cache. The next call of an append-only chat then reads all but its last turn from the cache."""
    if system:
        system[-1]["cache_control"] = {"type": "ephemeral"}
    if (system or len(chat) > 1) and chat[-1]["role"] == "user":
        chat[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}


def _fit_budget(thinking: Any, limit: Any, default: int) -> Any:
    """The argument `thinking`, with a budget that leaves room for a reply.

    Args:
        thinking: the argument as it was given.
        limit: token limit of the call, which may be small because of a limit of the run. None: the call gives none.
        default: token limit of calls that give none.

    Raises:
        ConfigError: the budget exceeds the default limit.
    """
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if type(budget) is not int or type(limit) not in (int, type(None)):
        return thinking  # the API will check it
    if limit is None:
        if budget >= default:
            raise ConfigError(
                f"thinking's budget of {budget} tokens leaves no room for a reply of {default} tokens, thinking included: "
                "give a larger max_tokens"
            )
        return thinking
    if budget < limit:
        return thinking
    if limit <= _LEAST_BUDGET:
        return {"type": "disabled"}
    return {**thinking, "budget_tokens": max(_LEAST_BUDGET, limit // 2)}


def _usage(response: AnthropicMessage, request_bytes: int, text: str) -> Usage:
    """The usage that the API reports, and an estimate for what it does not report. The API counts tokens that were read from
    the cache or written to it apart from the other input."""
    numbers = (
        count(getattr(response.usage, name, None))
        for name in (
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
        )
    )
    fresh, output, read, written = numbers
    guess = estimated(request_bytes, text)
    total = guess.input_tokens if fresh is None else fresh + (read or 0) + (written or 0)
    cached = min(read or 0, total)
    to_cache = min(written or 0, total - cached)
    return Usage(total, guess.output_tokens if output is None else output, None, cached, to_cache)
