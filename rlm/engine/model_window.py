"""How many tokens a prompt has, and whether it fits a model's window, where no tokenizer is at hand."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from rlm.clients.base import Client
from rlm.errors import ContextLengthError
from rlm.types import Content, Message, text_of

_log = logging.getLogger(__name__)

# Byte-pair vocabularies of 100K to 200K entries hold most short words whole, split long ones about every six letters, capitals
# about every two, and Qwen's and Llama's split numbers into single digits or groups of at most three. Of other alphabets (Greek
# to Arabic) they hold pairs of letters, of all other scripts (Chinese, Thai, ...) hardly more than single characters.
_PIECES = re.compile(
    r"[A-Z]?[a-z\u00df-\u024f]{1,6}|[A-Z\u00c0-\u00de]{1,2}|[\u0370-\u06ff]{1,2}|\d|[^\w\s]|_|\n|\w"
)

# Tokens that a chat template adds to every message: its role and separators.
_PER_MESSAGE = 5

# And to the whole: the begin of the text, and of the reply.
_PER_PROMPT = 4

# What an image or a minute of sound costs, about: providers count by size, which we do not decode.
_PER_MEDIUM = 1500

_LEAST, _MOST = 0.5, 4.0
"""Between what a guess is corrected by, whatever a server says that it counted."""

# Longer texts are counted in samples of this many characters: a look at all of 100,000 takes 5 ms.
_SAMPLE = 4000
_SAMPLES = 5


def estimate_tokens(messages: Sequence[Message]) -> int:
    """A guess from above: prose comes out at 1.0 to 1.3 times what the tokenizers of Qwen and OpenAI give."""
    return _PER_PROMPT + sum(
        _count(text_of(message["content"])) + _media(message["content"]) * _PER_MEDIUM + _PER_MESSAGE
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


def _media(content: Content) -> int:
    return 0 if isinstance(content, str) else sum(part["type"] != "text" for part in content)


def _most(text: str) -> int:
    """Tokens that a text has at most: one is at least one byte, and a character at most four."""
    return len(text) if text.isascii() else 4 * len(text)


class Counted(NamedTuple):
    """The beginning of a prompt, as a server counted it."""

    messages: int
    tokens: int


UNCOUNTED = Counted(0, 0)


class ModelWindow:
    """Knows how long a prompt is for a model, and refuses those that it cannot take before they are sent: a training
    endpoint may end the whole rollout over one of them. Its guess is corrected by the counts that the server reports."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ratio = 1.0
        self._learned = 0
        """Tokens of the prompt that the ratio comes from."""
        self._sample: tuple[Sequence[Message], int] | None = None
        """A prompt that it is to come from, once somebody wants to know."""
        self._size: int | None = None

    async def size(self) -> int | None:
        """The model's window in tokens, None where nobody says, or the client of somebody's own cannot tell."""
        if self._size is None:
            try:
                self._size = await self._client.context_length()
            except Exception:
                _log.warning(
                    "how large the window of %s is could not be had", self._client.model, exc_info=True
                )
        return self._size

    def observe(self, messages: Sequence[Message], tokens: int) -> None:
        """Learns from a prompt that the server counted, if it is much longer than the one before: to look at each would cost
        more with each turn."""
        if tokens > 2 * self._learned:
            self._sample = messages, tokens

    def _correction(self) -> float:
        if self._sample is not None:
            messages, self._learned = self._sample
            self._sample = None
            self._ratio = min(_MOST, max(_LEAST, self._learned / estimate_tokens(messages)))
        return self._ratio

    def guess(self, messages: Sequence[Message], counted: Counted = UNCOUNTED) -> int:
        """Tokens of a prompt, about.

        Args:
            counted: its beginning.
        """
        return counted.tokens + round(estimate_tokens(messages[counted.messages :]) * self._correction())

    def bound(self, messages: Sequence[Message], counted: Counted = UNCOUNTED) -> int:
        """Tokens of a prompt, at most, as far as one can tell. See `guess`."""
        ratio = max(1.0, self._correction())
        return counted.tokens + round(estimate_tokens(messages[counted.messages :]) * ratio)

    async def check(self, messages: Sequence[Message], counted: Counted = UNCOUNTED) -> None:
        """See `guess`.

        Raises:
            ContextLengthError: the prompt is longer than the window, as far as one can tell.
        """
        window = self._size or await self.size()
        if window is None:
            return
        rest = messages[counted.messages :]
        most = counted.tokens + sum(_most(text_of(message["content"])) + _PER_MESSAGE for message in rest)
        if most <= window:
            return
        guess = self.guess(messages, counted)
        if guess > window:
            characters = sum(len(text_of(message["content"])) for message in messages)
            raise ContextLengthError(
                f"the prompt has {characters:,} characters, about {guess:,} tokens, and the window of "
                f"{self._client.model} is {window:,} tokens: send less at a time"
            )
