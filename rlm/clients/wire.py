"""The OpenAI-compatible chat format: requests out, replies and errors in. No input, no output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from rlm.clients.base import ModelReply
from rlm.errors import (
    AuthenticationError,
    BadReplyError,
    ConfigError,
    ContextLengthError,
    ModelError,
    ModelNotFoundError,
    ModelUnavailableError,
    RolloutStoppedError,
)
from rlm.types import Message, SamplingArgs, Usage

BYTES_PER_TOKEN = 4
"""For servers that report no usage."""

_EXCERPT = 300
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_MESSAGE = 500  # the part of an error message that is searched: longer ones quote the prompt

_OWN_FIELDS = {
    "model": "give `model_name`",
    "messages": "the engine writes the messages",
    "stream": "replies are never streamed",
    "stream_options": "replies are never streamed",
}

# Wordings of vLLM, SGLang, TGI, llama.cpp, OpenAI, Anthropic, OpenRouter and the training endpoints of verifiers.
_TOO_LONG = re.compile(
    r"context[ _]length|context[ _]window|context[ _]size|maximum model length|prompt_too_long|prompt is too long"
    r"|max_new_tokens`? must be <=",
    re.IGNORECASE,
)
_STOPPED = re.compile(r"\s*rollout (stopped|concluded)\b", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"model_not_found|is not a valid model id", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient_quota", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed."""

    error: ModelError
    """What to raise if it was the last one."""
    retry: bool
    """Whether another attempt makes sense."""
    wait: float | None = None
    """Seconds that the server asks to wait."""


def encode_request(model: str, messages: Sequence[Message], sampling: SamplingArgs) -> bytes:
    """The body of a chat completion request.

    Strings travel as UTF-8. A lone surrogate has no UTF-8 form, and servers refuse its JSON escape: it becomes
    U+FFFD, and two halves of a pair that were given apart become the character that they make.

    Args:
        sampling: the other fields of the body, from `merge_sampling`.

    Raises:
        ConfigError: a value cannot be sent.
    """
    try:
        text = _JSON.encode({"model": model, "messages": messages, **sampling})
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"the request cannot be sent as JSON: {exc}") from exc
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def merge_sampling(defaults: SamplingArgs, sampling: SamplingArgs | None) -> SamplingArgs:
    """The sampling arguments of one call: its own win over the defaults. None means "the server's default" and is left
    out; `extra_body` is merged in, as in OpenAI's SDK.

    Raises:
        ConfigError: an argument is not for the caller to set.
    """
    merged = {name: value for name, value in {**defaults, **(sampling or {})}.items() if value is not None}
    extra = merged.pop("extra_body", {})
    if not isinstance(extra, Mapping):
        raise ConfigError(f"extra_body must be a dict, not {type(extra).__name__}")
    merged |= extra
    check_sampling(merged)
    return merged


def check_sampling(fields: Mapping[str, Any]) -> None:
    """Raises ConfigError if the sampling arguments hold something that is not theirs."""
    for name in fields:
        if name in _OWN_FIELDS:
            raise ConfigError(f"{name!r} is no sampling argument: {_OWN_FIELDS[name]}")
    if fields.get("n") not in (None, 1):
        raise ConfigError("sampling argument n must be 1: one call gives one reply")


def decode_reply(
    body: bytes, *, model: str, request_bytes: int, retries: int, echo_reasoning: bool = False
) -> ModelReply | Failure:
    """Reads the body of a 200. A gateway's error inside it (`{"error": {"code": 429, ...}}`) is a Failure.

    Usage that the server does not report is estimated at `BYTES_PER_TOKEN`, so that token limits hold.

    Args:
        model: the name that was asked for, under which the usage is booked: what a server reports is often a path or
            an alias.
        request_bytes: the size of the request, for the estimate.
        echo_reasoning: makes `echo` hold the reasoning, if there is any.

    Raises:
        BadReplyError: the body is no chat completion.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadReplyError(f"the server sent no JSON: {excerpt(body)}", status=200) from None
    if not isinstance(data, dict):
        raise BadReplyError(f"the server sent no chat completion: {excerpt(body)}", status=200)
    choices = data.get("choices")
    if not choices and isinstance(data.get("error"), Mapping):
        code = data["error"].get("code")
        return failure_of(code if type(code) is int and 400 <= code < 600 else 502, {}, body)
    try:
        choice = choices[0]  # type: ignore[index]
        message = choice["message"]
        content, refusal = _text_of(message.get("content"))
    except (TypeError, KeyError, IndexError, AttributeError):
        raise BadReplyError(f"the reply has no message: {excerpt(body)}", status=200) from None
    reasoning = _reasoning_of(message)
    finish = choice.get("finish_reason")
    return ModelReply(
        content=content,
        model=model,
        usage=_usage_of(data.get("usage"), request_bytes, content, reasoning),
        finish_reason=finish if isinstance(finish, str) else None,
        reasoning=reasoning,
        echo=_echo(content, reasoning) if echo_reasoning else None,
        refusal=_str_or_none(message.get("refusal")) or refusal,
        retries=retries,
    )


def failure_of(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """What an HTTP answer other than a 2xx means."""
    message, code = _error_of(body)
    if status in (400, 409) and _STOPPED.match(message):
        return Failure(RolloutStoppedError(message.strip(), status=status), retry=False)
    head = f"{code} {message[:_MESSAGE]}"
    if status in (400, 413, 422) and _TOO_LONG.search(head):
        return Failure(ContextLengthError(message[:_MESSAGE], status=status), retry=False)
    said = f"{status}: {excerpt(message) or 'no message'}"
    if status in (401, 403):
        return Failure(
            AuthenticationError(f"the server refused the key ({said})", status=status), retry=False
        )
    if status in (404, 405) or (status == 400 and _UNKNOWN_MODEL.search(head)):
        return Failure(ModelNotFoundError(said, status=status), retry=False)
    if 300 <= status < 400:
        target = excerpt(headers.get("location", "elsewhere"))
        text = f"the server redirects ({status}) to {target}: give the URL behind it as base_url"
        return Failure(ModelNotFoundError(text, status=status), retry=False)
    if status in (408, 409, 429) or status >= 500:
        # The second is OpenAI's own word on the matter.
        retry = not _NO_CREDIT.search(head) and headers.get("x-should-retry", "").lower() != "false"
        return Failure(ModelUnavailableError(said, status=status), retry, _wait_of(headers))
    return Failure(ModelError(f"the server refused the request ({said})", status=status), retry=False)


def excerpt(text: str | bytes) -> str:
    """The beginning of a text, on one line."""
    if isinstance(text, bytes):
        text = text[: 4 * _EXCERPT].decode(errors="replace")
    line = " ".join(text[: 4 * _EXCERPT].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets, which some servers quote in their errors."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _error_of(body: bytes) -> tuple[str, str]:
    """Message and code (or type) of an error body, in the shapes that servers use; else the body itself."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body[: 16 * _MESSAGE].decode(errors="replace"), ""
    if isinstance(data, Mapping):
        error = data.get("error", data)  # vLLM before 0.10: the fields are those of the body itself
        if isinstance(error, str):
            return error, ""
        if isinstance(error, Mapping):
            message = error.get("message") or error.get("detail")
            if message is not None:
                code = f"{error.get('code') or ''} {error.get('type') or ''}"
                return message if isinstance(message, str) else json.dumps(message), code
    return json.dumps(data), ""


def _wait_of(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time()
            except (ValueError, TypeError, OverflowError):
                continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


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


def _echo(content: str, reasoning: str | None) -> Message | None:
    if reasoning is None:
        return None
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def _str_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _usage_of(usage: Any, request_bytes: int, content: str, reasoning: str | None) -> Usage:
    if not isinstance(usage, Mapping):
        usage = {}
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None:
        prompt = -(-request_bytes // BYTES_PER_TOKEN)
    if completion is None:
        written = len((content + (reasoning or "")).encode(errors="replace"))
        completion = -(-written // BYTES_PER_TOKEN)
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    cost = usage.get("cost")
    priced = isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < float("inf")
    return Usage(prompt, completion, float(cost) if priced else None, min(cached or 0, prompt))


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def decode_models(body: bytes) -> list[dict[str, Any]] | None:
    """The entries of a `/models` answer, None if it is none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    entries = data.get("data") if isinstance(data, Mapping) else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else None
