"""The requests that a policy gets, and the answers that it can give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rlm.types import Usage


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request as the model gets it."""

    messages: list[dict[str, Any]]
    model: str
    sampling: dict[str, Any] = field(default_factory=dict)
    """All other fields of the body: max_tokens, temperature, ..."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """HTTP headers by name in lower case, without `authorization`. Empty in process."""

    @property
    def text(self) -> str:
        """The text of the last message."""
        return message_text(self.messages[-1]) if self.messages else ""

    @property
    def turn(self) -> int:
        """The number of replies of the model in this chat so far."""
        return sum(message.get("role") == "assistant" for message in self.messages)

    @property
    def is_subcall(self) -> bool:
        """Whether this is a plain call, as `llm_query` makes it: it has no system message. Every turn of a run has one."""
        return not self.messages or self.messages[0].get("role") != "system"

    @property
    def attempt(self) -> int:
        """The number of attempts of this call that failed before, from the header `x-stainless-retry-count`."""
        value = self.headers.get("x-stainless-retry-count", "0")
        return int(value) if value.isascii() and value.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that holds more than a text."""

    content: str | None
    """The text."""
    reasoning: str | None = None
    """Thinking. It is sent apart from the text, as `reasoning_content`."""
    finish_reason: str = "stop"
    """Why the reply ends. It becomes "length" if `max_tokens` or the window cuts the reply."""
    refusal: str | None = None
    """Why the model refuses to answer."""
    usage: Usage | None = None
    """Usage to report. None: the counted usage."""
    delay: float = 0.0
    """Seconds before the reply is sent."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that fails. In process it becomes the error that a client raises after its last attempt."""

    status: int = 500
    """HTTP status of the answer."""
    message: str = "a fault of the script"
    """Message of the error."""
    body: str | bytes | Mapping[str, Any] | None = None
    """Body in place of an error that holds `message`. With status 200 it can be any reply, sent exactly as it is."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """HTTP headers of the answer."""
    drop: Literal["before", "during"] | None = None
    """When the connection is closed: before the answer, or in the middle of its body. None: it is not closed."""
    delay: float = 0.0
    """Seconds before the fault happens."""


Answer: TypeAlias = str | Reply | Fault

Policy: TypeAlias = Callable[[ChatRequest], Answer | Awaitable[Answer]]
"""A function that answers a request. It runs on the event loop. If it is async, it can answer many requests at the same time.
An exception fails its call only, and clients are told not to retry that call."""


class ScriptExhaustedError(Exception):
    """A request came for a turn that the script does not have."""


class Script:
    """A policy that plays a list of answers in order. Every conversation starts at the first one.

    It keeps no state: the number of assistant messages in a request says which answer is next. So conversations can run at
    the same time, and equal conversations get equal answers. A `Fault` is not a turn: it happens to the first attempt of the
    turn after it, and the retry gets the next item of the list.

        Script(["first turn", Fault(429), "second turn, at the second attempt"])
        Script([repl_block("print(llm_query('one'))"), FINISH], subcalls=lambda request: f"<{request.text}>")
    """

    def __init__(
        self, answers: Sequence[Answer], *, subcalls: Callable[[ChatRequest], Answer] | None = None
    ) -> None:
        """
        Args:
            answers: the turns of a run, with their faults before them.
            subcalls: answers plain calls (`ChatRequest.is_subcall`). None: a plain call gets the first turn.
        """
        self._subcalls = subcalls
        self._turns: list[list[Answer]] = []
        pending: list[Answer] = []
        for answer in answers:
            pending.append(answer)
            if not isinstance(answer, Fault):
                self._turns.append(pending)
                pending = []
        if pending:  # faults at the end of the list: a turn that never gets an answer
            self._turns.append(pending)

    def __call__(self, request: ChatRequest) -> Answer:
        if self._subcalls is not None and request.is_subcall:
            return self._subcalls(request)
        if request.turn >= len(self._turns):
            raise ScriptExhaustedError(
                f"the script has {len(self._turns)} turns and was asked for turn {request.turn + 1}, "
                f"after: {request.text[:200]!r}"
            )
        attempts = self._turns[request.turn]
        return attempts[min(request.attempt, len(attempts) - 1)]


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message whose content is a str, None, or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return ""
