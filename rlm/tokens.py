"""Whether a prompt fits a model's window, where no tokenizer is at hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlm.clients.base import Client
from rlm.errors import ContextLengthError
from rlm.types import Message, text_of

# Byte-pair vocabularies of 100K to 200K entries hold most short words whole, split long ones about every six letters, and
# Qwen's and Llama's split numbers into single digits or groups of at most three.
_PIECES = re.compile(r"[^\W\d_]{1,6}|\d|[^\w\s]|_|\n")

# Tokens that a chat template adds to every message: its role and separators.
_PER_MESSAGE = 5


def estimate_tokens(messages: Sequence[Message]) -> int:
    """A guess from above: prose comes out at 1.0 to 1.3 times what the tokenizers of Qwen and OpenAI give."""
    return sum(
        sum(1 for _ in _PIECES.finditer(text_of(message["content"]))) + _PER_MESSAGE for message in messages
    )


class Window:
    """Refuses prompts that a model cannot take before they are sent: a training endpoint may end the whole rollout
    over one of them. Its guess is corrected by the counts that the server reports."""

    def __init__(self, client: Client, model: str | None = None) -> None:
        self._client = client
        self._model = model
        self._ratio = 1.0
        self._size: int | None = None
        self._asked = False

    def observe(self, messages: Sequence[Message], tokens: int) -> None:
        """Learns from a prompt that the server counted."""
        if tokens > 0 and self._size is not None:
            self._ratio = min(1.2, max(0.5, tokens / estimate_tokens(messages)))

    async def check(self, messages: Sequence[Message]) -> None:
        """
        Raises:
            ContextLengthError: the prompt is longer than the window, as far as one can tell.
        """
        if not self._asked:
            self._size = await self._client.context_length(self._model)
            self._asked = True
        window = self._size
        if window is None:
            return
        # A token is at least one byte, and a character at most four: what is shorter fits for sure, and needs no guess.
        if sum(4 * len(text_of(message["content"])) + _PER_MESSAGE for message in messages) <= window:
            return
        guess = round(estimate_tokens(messages) * self._ratio)
        if guess > window:
            characters = sum(len(text_of(message["content"])) for message in messages)
            raise ContextLengthError(
                f"the prompt has {characters:,} characters, about {guess:,} tokens, and the window of "
                f"{self._model or self._client.model} is {window:,} tokens: send less at a time"
            )
