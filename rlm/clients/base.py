"""The interface between the engine and a model provider."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from rlm._wording import a
from rlm.errors import ConfigError
from rlm.types import Message, SamplingArgs, Usage

MOST_TOKENS: Final = 1 << 40
"""More tokens than any call takes. A higher count is a mistake of the server or of the client."""


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One reply of a model."""

    content: str
    """The text. Empty if there is none: after a refusal, or if thinking used up the token limit."""
    model: str
    """The name under which the usage is booked."""
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    """The server's word for why the reply ended: "stop", "length", "content_filter", ..."""
    reasoning: str | None = None
    """Thinking that the server sent separately from the text."""
    echo: Message | None = None
    """The message that continues the chat, if it holds more than the text. Some chat templates render earlier thinking: the
    server's prefix cache then hits only if the thinking is sent back."""
    refusal: str | None = None
    """Why the model or the provider's filter refused to answer; None: neither did."""
    retries: int = 0
    """Attempts that failed before this one."""

    @property
    def message(self) -> Message:
        """The reply as the next message of the chat."""
        return self.echo or {"role": "assistant", "content": self.content}


class Client(abc.ABC):
    """A model of some provider. A provider of your own is a subclass: it sets `model` and defines `complete`. A plain object
    with these two also works; its other attributes are read once, if it has them.

    Many tasks and several event loops use one client at once. A subclass keeps a separate object for each loop where
    an object is bound to a loop.
    """

    model: str
    """The model's name at the provider. A subclass sets it."""
    provider: str = ""
    """The provider's name, for logs and telemetry. Empty: the name of the class is used."""
    sampling_args: Mapping[str, Any] = MappingProxyType({})
    """Arguments of every call. The engine reads the token limit of a reply from them before it makes a call."""
    reports_cost: bool = False
    """Whether replies have `Usage.cost`. If so, a budget needs no price for this model."""

    @abc.abstractmethod
    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """Asks for one reply.

        Args:
            messages: the chat. The engine does not change it during the call, and neither may the client.
            sampling: arguments of this call. They take precedence over `sampling_args`.
            model: another model of the same provider. None: `self.model`.

        Raises:
            ModelError: the call failed, retries included. The subclasses in `rlm.errors` say how. Any other exception
                counts as a ModelError of this call.
        """

    async def context_length(self, model: str | None = None) -> int | None:
        """The model's window in tokens; None: it is unknown. The engine asks often, so a client remembers the answer.

        Args:
            model: another model of the same provider. None: `self.model`.
        """
        return None


class _AdaptedClient(Client):
    """A client whose class does not derive from `Client`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.model = client.model
        self.provider = str(getattr(client, "provider", "") or type(client).__name__)
        self.sampling_args = getattr(client, "sampling_args", None) or {}
        self.reports_cost = bool(getattr(client, "reports_cost", False))

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        # The engine names no model, so `complete` may lack this argument.
        other = {} if model is None else {"model": model}
        reply: ModelReply = await self._client.complete(messages, sampling=sampling, **other)
        return reply

    async def context_length(self, model: str | None = None) -> int | None:
        if not hasattr(self._client, "context_length"):
            return None
        size: int | None = await self._client.context_length(*(() if model is None else (model,)))
        return size


def as_client(given: Any) -> Client:
    """Returns a checked client itself, or an adapter if its class does not derive from `Client`."""
    return given if isinstance(given, Client) else _AdaptedClient(given)


def check_client(what: str, given: object) -> None:
    """Checks that an argument is a client: a `Client`, or a plain object with `complete` and `model`.

    Args:
        what: names the argument in the message.

    Raises:
        ConfigError: the argument is no client, or has no `model`.
    """
    if isinstance(given, type) or not callable(getattr(given, "complete", None)):
        hint = "; the name of a model goes into backend_kwargs" if isinstance(given, str) else ""
        raise ConfigError(
            f"{what} must be a client, as rlm.clients.make_client makes one, and is {a(given)}{hint}"
        )
    name = getattr(given, "model", None)
    if not isinstance(name, str):
        raise ConfigError(f"{what} must have the model's name in its attribute `model`, a str, not {a(name)}")
