"""The OpenAI-compatible chat format: writes requests and reads replies, and does no I/O itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlm.clients.base import ModelReply
from rlm.clients.failures import Failure, excerpt, failure_of
from rlm.clients.message_parts import check_parts, sendable
from rlm.clients.usage import estimated, usage_of
from rlm.errors import BadReplyError, ConfigError
from rlm.types import Message, SamplingArgs

TokensField = Literal["max_tokens", "max_completion_tokens"]
"""The field for the token limit of a reply. Servers know one of the two names, or both."""

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

_OWN_FIELDS = {
    "model": "give `model_name`",
    "messages": "the engine writes the messages",
    "stream": "replies are never streamed",
    "stream_options": "replies are never streamed",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The differences between one OpenAI-compatible server and others."""

    provider: str = "openai"
    tokens_field: TokensField = "max_tokens"
    """The field for the token limit of a reply. OpenAI's newer models and Azure refuse "max_tokens"; other servers do not know
    "max_completion_tokens". A server that refuses one name gets the other."""
    key_header: str = "Authorization"
    """Name of the header for the key. In "Authorization" the key is a bearer token."""
    chat_path: str = "/chat/completions"
    """Path after the base URL. `{model}` in it stands for the model's name at the server."""
    deployments: Mapping[str, str] = field(default_factory=dict)
    """The server's names of models, by the caller's names, where the two differ."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every request gets."""
    lists_models: bool = True
    """Whether `GET /models` lists the models that a request can name."""
    reasoning_details: bool = False
    """Whether thinking is received and sent back as `reasoning_details`, with its signatures."""
    reports_cost: bool = False
    """Whether usage has the cost of a call in USD."""

    def name_of(self, model: str) -> str:
        """The model's name at the server."""
        return self.deployments.get(model, model)


PLAIN = Dialect()


def encode_request(
    model: str, messages: Sequence[Message], sampling: SamplingArgs, dialect: Dialect = PLAIN
) -> bytes:
    """The body of a chat completion request.

    Strings are sent as UTF-8; see `rlm.clients.message_parts.sendable` for strings that UTF-8 cannot hold.

    Args:
        model: the model's name, as the caller knows it.
        messages: the chat.
        sampling: the other fields of the body, from `merge_sampling`.
        dialect: the server's dialect.

    Raises:
        ConfigError: a value cannot be sent.
    """
    check_parts(messages)
    if any("native" in message for message in messages):
        messages = [_outgoing(message, model, dialect) for message in messages]
    try:
        name = dialect.name_of(model)
        text = _JSON.encode({"model": name, "messages": messages, **dialect.extra_body, **sampling})
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the request cannot be sent as JSON: {exc}") from exc
    return sendable(text).encode()


def _outgoing(message: Message, model: str, dialect: Dialect) -> Any:
    """The message as it is sent. Content in the form of another provider is left out."""
    sent: dict[str, Any] = {**message}
    native = sent.pop("native", None)
    if native and (native["provider"], native["model"]) == (dialect.provider, model):
        sent["reasoning_details"] = native["content"]
    return sent


def merge_sampling(
    defaults: Mapping[str, Any], sampling: SamplingArgs | None, tokens_field: TokensField | None = None
) -> SamplingArgs:
    """The sampling arguments of one call.

    An argument with the value None is left out: the server's default then holds. `extra_body` is merged in, as in OpenAI's
    SDK.

    Args:
        defaults: arguments of every call.
        sampling: arguments of this call. They take precedence over `defaults`.
        tokens_field: the name under which `max_tokens` is sent. If both names were given, the smaller limit is sent.

    Raises:
        ConfigError: the caller cannot set an argument, because the client sets it.
    """
    merged = {name: value for name, value in {**defaults, **(sampling or {})}.items() if value is not None}
    extra = merged.pop("extra_body", {})
    if not isinstance(extra, Mapping):
        raise ConfigError(f"extra_body must be a dict, not {type(extra).__name__}")
    merged |= extra
    check_sampling(merged)
    if tokens_field is not None and "max_tokens" in merged:
        given = [merged.pop(name) for name in ("max_tokens", "max_completion_tokens") if name in merged]
        merged[tokens_field] = min(given) if all(type(value) is int for value in given) else given[0]
    return merged


def check_sampling(fields: Mapping[str, Any]) -> None:
    """Checks sampling arguments.

    Raises:
        ConfigError: one of them is a field that the client sets itself, or asks for more than one reply.
    """
    for name in fields:
        if name in _OWN_FIELDS:
            raise ConfigError(f"{name!r} is no sampling argument: {_OWN_FIELDS[name]}")
    if fields.get("n") not in (None, 1):
        raise ConfigError("sampling argument n must be 1: one call gives one reply")


def decode_reply(
    body: bytes,
    *,
    model: str,
    request_bytes: int,
    retries: int,
    echo_reasoning: bool = False,
    dialect: Dialect = PLAIN,
) -> ModelReply | Failure:
    """Reads the body of a 200.

    If the server reports no usage, it is estimated from its bytes, so that token limits hold.

    Args:
        body: the body of the answer.
        model: the name in the request, under which the usage is counted. The name that a server reports is often a path or
            an alias.
        request_bytes: size of the request in bytes, for the estimate.
        retries: attempts that failed before.
        echo_reasoning: put the reasoning into `ModelReply.echo`, if there is any.
        dialect: the server's dialect.

    Returns:
        The reply. A Failure if the body holds a gateway's error: `{"error": {"code": 429, ...}}`.

    Raises:
        BadReplyError: the body is not a chat completion.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadReplyError(f"the server's reply is not JSON: {excerpt(body)}", status=200) from None
    if not isinstance(data, dict):
        raise BadReplyError(f"the server's reply is not a chat completion: {excerpt(body)}", status=200)
    choices = data.get("choices")
    if not choices and isinstance(data.get("error"), Mapping):
        return _error_inside(data["error"], body)
    try:
        choice = choices[0]  # type: ignore[index]
        if isinstance(choice.get("error"), Mapping):  # from OpenRouter, when the provider behind it failed
            return _error_inside(choice["error"], json.dumps({"error": choice["error"]}).encode())
        message = choice["message"]
        content, refusal = _text_of(message.get("content"))
    except (TypeError, KeyError, IndexError, AttributeError):
        raise BadReplyError(f"the reply has no message: {excerpt(body)}", status=200) from None
    reasoning = _reasoning_of(message)
    finish = choice.get("finish_reason")
    return ModelReply(
        content=content,
        model=model,
        usage=usage_of(data.get("usage"), request_bytes, content, reasoning),
        finish_reason=finish if isinstance(finish, str) else None,
        reasoning=reasoning,
        echo=_echo(content, reasoning, message, model, dialect) if echo_reasoning else None,
        refusal=_str_or_none(message.get("refusal")) or refusal,
        retries=retries,
    )


def refused(
    failure: Failure, *, model: str, request_bytes: int, retries: int, dialect: Dialect = PLAIN
) -> ModelReply:
    """The reply for a prompt that the provider's filter refused. Its cost is 0 if the server reports costs."""
    usage = estimated(request_bytes, "")
    return ModelReply(
        content="",
        model=model,
        usage=replace(usage, cost=0.0) if dialect.reports_cost else usage,
        finish_reason="content_filter",
        refusal=failure.refusal,
        retries=retries,
    )


def decode_models(body: bytes) -> list[dict[str, Any]] | None:
    """The entries of an answer of `GET /models`; None if the body is something else."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    entries = data.get("data") if isinstance(data, Mapping) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else None


def window_of(entry: Mapping[str, Any]) -> int | None:
    """The window in tokens that an entry of `GET /models` gives: `max_model_len` (vLLM), `context_length` or `context_window`;
    None if the entry has none of these."""
    for name in ("max_model_len", "context_length", "context_window"):
        size = entry.get(name)
        if type(size) is int and size > 0:
            return size
    return None


def _error_inside(error: Mapping[str, Any], body: bytes) -> Failure:
    code = error.get("code")
    return failure_of(code if type(code) is int and 400 <= code < 600 else 502, {}, body)


def _text_of(content: Any) -> tuple[str, str | None]:
    """Text and refusal of a message's content: None, a str, or a list of parts."""
    if content is None:
        return "", None
    if isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        raise TypeError
    texts: list[str] = []
    refusals: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            if isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif isinstance(part.get("refusal"), str):
                refusals.append(part["refusal"])
    return "".join(texts), "".join(refusals) or None


def _reasoning_of(message: Mapping[str, Any]) -> str | None:
    for name in ("reasoning_content", "reasoning"):
        if text := _str_or_none(message.get(name)):
            return text
    return None


def _echo(
    content: str, reasoning: str | None, message: Mapping[str, Any], model: str, dialect: Dialect
) -> Message | None:
    details = message.get("reasoning_details")
    if dialect.reasoning_details and isinstance(details, list) and details:
        native = [detail for detail in details if isinstance(detail, dict)]
        return {
            "role": "assistant",
            "content": content,
            "native": {"provider": dialect.provider, "model": model, "content": native},
        }
    if reasoning is None:
        return None
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def _str_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
