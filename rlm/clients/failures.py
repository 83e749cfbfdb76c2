"""Interprets a failed attempt: the error to raise, and whether to try again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import TYPE_CHECKING, Any

from rlm.errors import (
    AuthenticationError,
    BadReplyError,
    ContextLengthError,
    ModelError,
    ModelNotFoundError,
    ModelTimeoutError,
    ModelUnavailableError,
    RolloutStoppedError,
)

if TYPE_CHECKING:
    from rlm.clients.pool import TransportError

_EXCERPT = 300
_MESSAGE = 500  # the part of an error message that is searched: longer ones quote the prompt

# Wordings of vLLM, SGLang, TGI, llama.cpp, OpenAI, Anthropic, Gemini, Bedrock, xAI, OpenRouter and the training endpoints
# of verifiers.
_TOO_LONG = re.compile(
    r"context[ _]length|context[ _]window|context[ _]size|context[ _]limit|maximum model length|prompt_too_long"
    r"|prompt is too long|input is too long|request_too_large|maximum prompt length|too many tokens"
    r"|max_new_tokens`? must be <=|input tokens? (count .{1,40})?exceeds? the (maximum|configured)"
    r"|reduce the length of the (messages|input|prompt)",
    re.IGNORECASE,
)
_STOPPED = re.compile(r"\s*rollout (stopped|concluded)\b", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"model_not_found|is not a valid model id|DeploymentNotFound", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient_quota", re.IGNORECASE)
_BAD_KEY = re.compile(r"api[ _]key (not valid|not found|expired|invalid)|API_KEY_INVALID", re.IGNORECASE)
# OpenAI's and Azure's codes for a prompt that their filter refused.
_REFUSED = re.compile(r"\b(content_filter|content_policy_violation|invalid_prompt|moderation_blocked)\b")
_GUARDRAIL = 446  # Portkey: a guardrail denied the request
_RETRY_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that failed."""

    error: ModelError
    """The error to raise if this was the last attempt."""
    retry: bool
    """Whether another attempt can succeed."""
    wait: float | None = None
    """Seconds that the server asks to wait."""
    refusal: str | None = None
    """The text with which the provider's filter refused the prompt before the model was called; None: it did not refuse."""


def failure_of(status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """The meaning of an HTTP answer other than a 2xx.

    Args:
        status: the HTTP status.
        headers: a mapping that ignores the case of names, or whose names are in lower case.
        body: the body of the answer.
    """
    message, code, data = _error_of(body)
    if status in (400, 409) and _STOPPED.match(message):
        return Failure(RolloutStoppedError(message.strip(), status=status), retry=False)
    head = f"{code} {message[:_MESSAGE]}"
    if status in (400, 413, 422) and _TOO_LONG.search(head):
        return Failure(ContextLengthError(message[:_MESSAGE], status=status), retry=False)
    said = f"{status}: {excerpt(message) or 'no message'}"
    if _is_refusal(status, code, data):
        error = ModelError(f"the provider's filter refused the prompt ({said})", status=status)
        return Failure(
            error, retry=False, refusal=excerpt(message) or "the provider's filter refused the prompt"
        )
    if status in (401, 403) or (status == 400 and _BAD_KEY.search(head)):
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
        # x-should-retry is OpenAI's header.
        retry = not _NO_CREDIT.search(head) and headers.get("x-should-retry", "").lower() != "false"
        return Failure(ModelUnavailableError(said, status=status), retry, _wait_of(headers, data))
    return Failure(ModelError(f"the server refused the request ({said})", status=status), retry=False)


def failure_without_answer(exc: TransportError) -> Failure:
    """The meaning of a request that got no HTTP answer."""
    if exc.kind == "timeout":
        return Failure(ModelTimeoutError(str(exc)), retry=True)
    if exc.kind == "garbage":
        return Failure(BadReplyError(str(exc)), retry=False)
    return Failure(ModelUnavailableError(str(exc)), retry=exc.kind != "tls")


def excerpt(text: str | bytes) -> str:
    """The beginning of a text as one line of printable characters."""
    if isinstance(text, bytes):
        text = text[: 4 * _EXCERPT].decode(errors="replace")
    line = " ".join(text[: 4 * _EXCERPT].split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets. Some servers quote the key in their errors."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _error_of(body: bytes) -> tuple[str, str, Mapping[str, Any]]:
    """Message, code (or type) and fields of an error body, in the shapes that servers use. The message of any other body is the
    body itself."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body[: 16 * _MESSAGE].decode(errors="replace"), "", {}
    if isinstance(data, list) and len(data) == 1:  # Google's OpenAI-compatible endpoint
        data = data[0]
    if isinstance(data, Mapping):
        error = data.get("error", data)  # vLLM before 0.10 has the fields at the top of the body
        if isinstance(error, str):
            return error, "", {}
        if isinstance(error, Mapping):
            message = error.get("message") or error.get("detail")
            if message is not None:
                code = " ".join(str(error.get(name) or "") for name in ("code", "type", "status"))
                return message if isinstance(message, str) else json.dumps(message), code, error
    return json.dumps(data), "", {}


def _is_refusal(status: int, code: str, error: Mapping[str, Any]) -> bool:
    if status == 400:
        return _REFUSED.search(code) is not None
    # OpenRouter uses 403 both for a wrong key and for a flagged prompt.
    flagged = error.get("metadata")
    return status == _GUARDRAIL or (
        status == 403 and isinstance(flagged, Mapping) and "flagged_input" in flagged
    )


def _wait_of(headers: Mapping[str, str], error: Mapping[str, Any]) -> float | None:
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
    return _google_wait(error.get("details"))


def _google_wait(details: Any) -> float | None:
    """The wait in the body of Google's errors: `{"@type": ".../google.rpc.RetryInfo", "retryDelay": "34s"}`."""
    for detail in details if isinstance(details, list) else []:
        if isinstance(detail, Mapping) and str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
            found = _RETRY_DELAY.fullmatch(str(detail.get("retryDelay")))
            if found:
                return float(found[1])
    return None
