"""The usage of a call, as servers report it or estimated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlm.clients.base import MOST_TOKENS
from rlm.types import Usage

BYTES_PER_TOKEN = 4
"""Estimate for servers that report no usage."""

_MOST_DOLLARS = 1e9  # a higher cost of one call is a mistake of the server


def estimated(request_bytes: int, text: str) -> Usage:
    """An estimate of a call's usage.

    Args:
        request_bytes: size of the request in bytes.
        text: text of the reply, thinking included.
    """
    written = len(text.encode(errors="replace"))
    return Usage(-(-request_bytes // BYTES_PER_TOKEN), -(-written // BYTES_PER_TOKEN))


def usage_of(usage: Any, request_bytes: int, content: str, reasoning: str | None) -> Usage:
    """The usage in the body of a chat completion. Counts that are missing are estimated.

    Args:
        usage: the field `usage` of the body.
        request_bytes: size of the request in bytes.
        content: text of the reply.
        reasoning: thinking of the reply.
    """
    if not isinstance(usage, Mapping):
        usage = {}
    prompt, completion = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        guess = estimated(request_bytes, content + (reasoning or ""))
        prompt = guess.input_tokens if prompt is None else prompt
        completion = guess.output_tokens if completion is None else completion
    details = usage.get("prompt_tokens_details")
    if not isinstance(details, Mapping):
        details = {}
    cached = min(count(details.get("cached_tokens")) or 0, prompt)
    written_to_cache = min(count(details.get("cache_write_tokens")) or 0, prompt - cached)
    return Usage(prompt, completion, _cost_of(usage), cached, written_to_cache)


def _cost_of(usage: Mapping[str, Any]) -> float | None:
    cost = _dollars(usage.get("cost"))
    details = usage.get("cost_details")
    if cost is not None and usage.get("is_byok") is True and isinstance(details, Mapping):
        # With the user's own key, `cost` is OpenRouter's fee alone, and the provider charges the rest.
        cost += _dollars(details.get("upstream_inference_cost")) or 0.0
    return cost


def _dollars(value: Any) -> float | None:
    priced = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_DOLLARS
    return float(value) if priced else None


def count(value: Any) -> int | None:
    """The value as a number of tokens; None if it cannot be one."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
