"""What a scripted model is asked, and what it may answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rlm.types import Usage


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request, as the model sees it."""

    messages: list[dict[str, Any]]
    model: str
    sampling: dict[str, Any] = field(default_factory=dict)
    """Every other field of the body: max_tokens, temperature, ..."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Names in lower case, without `authorization`. Empty in process."""

    @property
    def text(self) -> str:
        """The text of the last message."""
        return message_text(self.messages[-1]) if self.messages else ""

    @property
    def turn(self) -> int:
        """How many times the model has spoken in this chat."""
        return sum(message.get("role") == "assistant" for message in self.messages)

    @property
    def is_subcall(self) -> bool:
        """Whether this is a plain call, as `llm_query` makes it. It has no system message; every turn of a run has one."""
        return not self.messages or self.messages[0].get("role") != "system"

    @property
    def attempt(self) -> int:
        """How many attempts of this very call failed before, as the caller says (`x-stainless-retry-count`)."""
        value = self.headers.get("x-stainless-retry-count", "0")
        return int(value) if value.isascii() and value.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with more than its text."""

    content: str | None
    reasoning: str | None = None
    """Sent apart from the text, as `reasoning_content`."""
    finish_reason: str = "stop"
    """Becomes "length" where `max_tokens` or the model's window cuts the reply."""
    refusal: str | None = None
    usage: Usage | None = None
    """Reported instead of what was counted."""
    delay: float = 0.0
    """Seconds before it is sent."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that goes wrong. In process it becomes the error that a client raises once its retries are used up."""

    status: int = 500
    message: str = "a fault of the script"
    body: str | bytes | Mapping[str, Any] | None = None
    """Sent as it is instead of an error that holds `message`. With status 200 it is an answer by the letter."""
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: Literal["before", "during"] | None = None
    """Closes the connection: before the answer, or in the middle of its body."""
    delay: float = 0.0
    """Seconds before it happens."""


Answer: TypeAlias = str | Reply | Fault

Policy: TypeAlias = Callable[[ChatRequest], Answer | Awaitable[Answer]]
"""Answers a request. Called on the event loop, for many requests at once if it awaits. An exception fails that
call only; clients are told not to retry it."""


class ScriptExhaustedError(Exception):
    """A script was asked for more turns than it has."""


class Script:
    """A policy that plays answers in order, in every conversation from the start.

    It keeps no state: which answer is due follows from the request, by the assistant messages in it. So conversations
    may run at once, and equal ones get equal answers. Faults do not count as turns: a `Fault` before an answer happens
    to the first attempt of that turn, and the retry gets what comes after it.

        Script(["first turn", Fault(429), "second turn, at the second attempt"])
        Script([repl_block("print(llm_query('one'))"), FINISH], subcalls=lambda request: f"<{request.text}>")
    """

    def __init__(
        self, answers: Sequence[Answer], *, subcalls: Callable[[ChatRequest], Answer] | None = None
    ) -> None:
        """
        Args:
            answers: the turns of a run, with the faults that come before them.
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
        if pending:  # faults at the end: that turn never gets an answer
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
