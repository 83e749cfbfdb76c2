"""What a model is asked, by name: how a replay and the file of a map find again what was answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from rlm.types import Message

place: ContextVar[tuple[int, ...]] = ContextVar("place", default=())
"""Where in its tree of calls a task stands: for each sub-call that it is part of, the number of the batch in its run and that
of the prompt in its batch, from 0. By it a replay tells equal requests apart."""

CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Sampling arguments that say how long a reply may be. Limits change them, so they are no part of a request's name."""


def request_key(model: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
    """A name for what a model is asked, by which a replay finds the reply: equal for equal requests on every machine.

    Args:
        model: its name at the provider.
        messages: the chat.
        sampling: the arguments of the call.
    """
    asked = {name: value for name, value in sampling.items() if name not in CAPS}
    return fingerprint([model, list(messages), asked])


def fingerprint(data: Any) -> str:
    """A short name for plain data: equal for equal data on every machine."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
