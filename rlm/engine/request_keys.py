"""Keys of requests and of configurations, by which a replay and the results file of a map find earlier answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from rlm.types import Message

call_place: ContextVar[tuple[int, ...]] = ContextVar("call_place", default=())
"""The place of the current task in the call tree: for each sub-call around it, the number of the batch in its run and the
number of the prompt in its batch, from 0. A replay tells equal requests apart by this place."""

CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Sampling arguments that limit the length of a reply. The ledger changes them, so they are not part of a request's key."""


def request_key(model: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
    """The key of a request: the same for equal requests on every machine.

    Args:
        model: the provider's name of the model.
        messages: the chat.
        sampling: the sampling arguments of the call.
    """
    asked = {name: value for name, value in sampling.items() if name not in CAPS}
    return fingerprint([model, list(messages), asked])


def fingerprint(data: Any) -> str:
    """A hash of plain data, 32 hex digits: the same for equal data on every machine."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
