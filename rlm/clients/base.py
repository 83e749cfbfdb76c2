"""What the engine asks of a model provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from rlm.types import Message, SamplingArgs, Usage

MOST_TOKENS: Final = 1 << 40
"""More than any call takes: a count above it is a mistake of who counted."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One reply of a model."""

    content: str
    """The text; empty when there was none (a refusal, thinking that used up the token limit)."""
    model: str
    """The name under which the usage is booked."""
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    """As the server says it: "stop", "length", "content_filter", ..."""
    reasoning: str | None = None
    """Thinking that the server sent apart from the text."""
    echo: Message | None = None
    """The message that goes back into the chat, where that is more than the text: a server whose chat template puts the
    thinking back needs it to find its prefix again."""
    refusal: str | None = None
    retries: int = 0
    """Attempts that failed before this one."""

    @property
    def message(self) -> Message:
        """The reply as the chat's next message."""
        return self.echo or {"role": "assistant", "content": self.content}


class Client(Protocol):
    """A model behind some provider. Safe to use from many tasks of one event loop at once, and from several
    event loops: what is bound to a loop is kept per loop.

    A client may say more, in attributes that are looked at where there are any: `provider` (str, a word for who serves the
    model), `sampling_args` (dict, of every call: a token limit in it is known before a call is made) and `reports_cost`
    (bool, whether replies have `Usage.cost`, so that a budget needs no price)."""

    @property
    def model(self) -> str:
        """The model's name at the provider."""
        ...

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """Asks for one reply.

        Args:
            messages: the chat, sent as it is.
            sampling: arguments of this call; they win over those the client was made with.
            model: another model of the same provider.

        Raises:
            ModelError: of the kind that `rlm.errors` names, after retries where they make sense.
        """
        ...

    async def context_length(self, model: str | None = None) -> int | None:
        """The model's window in tokens (`max_model_len` of `/v1/models`), None where the provider does not
        say. Asked once and remembered; never raises."""
        ...
