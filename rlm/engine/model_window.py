"""Estimates the tokens of a prompt without a tokenizer, and whether it fits a model's window."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from rlm.clients.base import Client
from rlm.errors import ContextLengthError
from rlm.types import Content, Message, text_of

_log = logging.getLogger(__name__)

# How byte-pair vocabularies of 100,000 to 200,000 entries cut text: most short words are one token, long words are cut about
# every six letters, capitals about every two. Qwen and Llama cut numbers into single digits or groups of at most three. Other
# alphabets (Greek to Arabic) are cut into pairs of letters, all other scripts (Chinese, Thai, ...) into single characters.
_PIECES = re.compile(
    r"[A-Z]?[a-z\u00df-\u024f]{1,6}|[A-Z\u00c0-\u00de]{1,2}|[\u0370-\u06ff]{1,2}|\d|[^\w\s]|_|\n|\w"
)

# Tokens that a chat template adds to each message: its role and separators.
_PER_MESSAGE = 5

# Tokens that it adds to the whole prompt: the beginning of the text, and of the reply.
_PER_PROMPT = 4

# Tokens of an image or a sound, roughly. Providers count by size, which is not decoded here.
_PER_MEDIUM = 1500

_LEAST, _MOST = 0.5, 4.0
"""Bounds of the correction factor, whatever counts a server reports."""

# Long texts are estimated from samples of this many characters: counting all of 100,000 takes 5 ms.
_SAMPLE = 4000
_SAMPLES = 5


def estimate_tokens(messages: Sequence[Message]) -> int:
    """An estimate on the high side: for prose 1.0 to 1.3 times the count of Qwen's and OpenAI's tokenizers."""
    return _PER_PROMPT + sum(
        _count(text_of(message["content"])) + _media_tokens(message["content"]) * _PER_MEDIUM + _PER_MESSAGE
        for message in messages
    )


def _count(text: str) -> int:
    size = len(text)
    if size <= 2 * _SAMPLE * _SAMPLES:
        return len(_PIECES.findall(text))
    step = (size - _SAMPLE) // (_SAMPLES - 1)
    samples = [text[start : start + _SAMPLE] for start in range(0, step * _SAMPLES, step)]
    found = sum(_count(sample) for sample in samples)
    return round(1.05 * found * size / sum(map(len, samples)))


def _media_tokens(content: Content) -> int:
    return 0 if isinstance(content, str) else sum(part["type"] != "text" for part in content)


def _most_tokens(text: str) -> int:
    """The most tokens that a text can have: a token is at least one byte, and a character at most four bytes."""
    return len(text) if text.isascii() else 4 * len(text)


class Counted(NamedTuple):
    """The beginning of a prompt that a server has counted: its messages, and their tokens."""

    messages: int
    tokens: int


UNCOUNTED = Counted(0, 0)


class ModelWindow:
    """The window of a model. Estimates the tokens of prompts, corrected by the counts that the server reports, and refuses a
    prompt that cannot fit before it is sent: a training endpoint may end the whole rollout over one such prompt."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ratio = 1.0
        self._learned = 0
        """Tokens of the prompt that `_ratio` was computed from."""
        self._sample: tuple[Sequence[Message], int] | None = None
        """The prompt and count from which `_ratio` is computed at its next use."""
        self._size: int | None = None

    async def size(self) -> int | None:
        """The size of the window in tokens; None if the provider does not report it, or the client raises."""
        if self._size is None:
            try:
                self._size = await self._client.context_length()
            except Exception:
                _log.warning(
                    "the size of the window of %s could not be read", self._client.model, exc_info=True
                )
        return self._size

    def observe(self, messages: Sequence[Message], tokens: int) -> None:
        """Takes the server's count of a prompt. Only a count more than twice as large as the last one used is kept: estimating
        every prompt would cost more with each turn."""
        if tokens > 2 * self._learned:
            self._sample = messages, tokens

    def _correction(self) -> float:
        if self._sample is not None:
            messages, self._learned = self._sample
            self._sample = None
            self._ratio = min(_MOST, max(_LEAST, self._learned / estimate_tokens(messages)))
        return self._ratio

    def guess(self, messages: Sequence[Message], counted: Counted = UNCOUNTED) -> int:
        """The estimated tokens of a prompt.

        Args:
            counted: the beginning of the prompt, if the server has counted it.
        """
        return counted.tokens + round(estimate_tokens(messages[counted.messages :]) * self._correction())

    def bound(self, messages: Sequence[Message], counted: Counted = UNCOUNTED) -> int:
        """Does what `guess` does, but never corrects downwards."""
        ratio = max(1.0, self._correction())
        return counted.tokens + round(estimate_tokens(messages[counted.messages :]) * ratio)

    async def check(self, messages: Sequence[Message], counted: Counted = UNCOUNTED) -> None:
        """Refuses a prompt that is too long. See `guess` for `counted`.

        Raises:
            ContextLengthError: the prompt is longer than the window, by the estimate.
        """
        window = self._size or await self.size()
        if window is None:
            return
        rest = messages[counted.messages :]
        most = counted.tokens + sum(
            _most_tokens(text_of(message["content"])) + _PER_MESSAGE for message in rest
        )
        if most <= window:
            return
        guess = self.guess(messages, counted)
        if guess > window:
            characters = sum(len(text_of(message["content"])) for message in messages)
            raise ContextLengthError(
                f"the prompt has {characters:,} characters, about {guess:,} tokens, and the window of "
                f"{self._client.model} is {window:,} tokens: send less at a time"
            )
