"""What happens in a run, as typed events: what `RLM.stream` yields, and what logs and consoles listen to.

Every event has `type` (its name in the log), `time` (seconds since 1970), `run` (the id of the run it belongs to), `parent`
(the run above, or None) and `depth` (0: the root's run). A tree of calls is one root run and the runs below it. A context
is never part of an event, only its kind, size and hash; keys and headers never reach one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rlm.types import Message, RLMChatCompletion, RunStats, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have."""

    type: ClassVar[str] = ""
    time: float
    run: str
    parent: str | None
    depth: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the log holds it."""
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart(Event):
    """A run begins: the root's, or a child's."""

    type: ClassVar[str] = "run_start"
    model: str
    question: str | None
    context: dict[str, Any]
    """kind, size and sha256 of the newest context."""
    earlier_contexts: int = 0
    """Contexts of earlier completions in the same REPL."""
    system_prompt: str
    first_message: str
    max_iterations: int
    max_depth: int
    call: str | None = None
    """The sub-call that this run answers."""
    context_length: int | None = None
    """The window of `model` in tokens, if it is known."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling arguments of the run's own calls."""
    sub_sampling: dict[str, Any] = field(default_factory=dict)
    """Those of all calls below it."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """In the root's run, the models that the code may name, the default first: for each the `model` at its `provider`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStart(Event):
    """The model is about to be asked."""

    type: ClassVar[str] = "turn_start"
    turn: int
    """Counted from 1; one more than `max_iterations` for the call that asks for the answer alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Event):
    """The run's model replied, or failed for good."""

    type: ClassVar[str] = "reply"
    turn: int
    purpose: str = "turn"
    """"turn", "answer" (the call after the last turn) or "compaction"."""
    model: str
    request: str
    """`rlm.engine.request_keys.request_key` of what was asked."""
    message: Message | None
    """The reply as it goes back into the chat; None if the call failed."""
    content: str
    reasoning: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    retries: int = 0
    error: str | None = None
    error_type: str | None = None
    """Name of the class in `rlm.errors`."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStart(Event):
    """A block of the reply begins to run."""

    type: ClassVar[str] = "cell_start"
    turn: int
    number: int
    """Of the block in its reply, counted from 1."""
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Event):
    """A block has run."""

    type: ClassVar[str] = "cell"
    turn: int
    number: int
    code: str
    status: str
    """As `rlm.environments.CellStatus`."""
    stdout: str
    stderr: str
    error: str | None
    locals: dict[str, str]
    answer: dict[str, Any]
    """content, ready, note."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStart(Event):
    """The code asks sub-models: one prompt, or a batch."""

    type: ClassVar[str] = "batch_start"
    batch: str
    """Its id; each of its sub-calls has it."""
    kind: str
    """"llm" or "rlm"."""
    model: str
    size: int
    """Prompts."""
    children: bool
    """They become child runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subcall(Event):
    """One prompt has been answered, or failed."""

    type: ClassVar[str] = "subcall"
    batch: str
    index: int
    """Of the prompt in its batch, from 0."""
    call: str
    """Its id; the child run that answered it has it too."""
    kind: str
    model: str
    request: str | None
    """`rlm.engine.request_keys.request_key` of what was asked; None for a child run."""
    prompt_chars: int
    prompt_head: str
    response: str
    message: Message | None = None
    """The model's reply as a message, for a plain call that was answered, also if there was no text in it."""
    refusal: str | None = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    retries: int = 0
    error: str | None = None
    error_type: str | None = None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnd(Event):
    """All prompts of a batch have been answered, or failed."""

    type: ClassVar[str] = "batch_end"
    batch: str
    failed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(Event):
    """The code called a custom tool."""

    type: ClassVar[str] = "tool_call"
    name: str
    error: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction(Event):
    """The history was replaced by a summary of it."""

    type: ClassVar[str] = "compaction"
    turn: int
    """The turn before which it happened."""
    tokens_before: int
    tokens_after: int
    """An estimate."""
    summary: str
    """Empty if the model could not write one."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReached(Event):
    """A limit of the tree was reached, or its caller cancelled it. Once in a tree, in the root's run."""

    type: ClassVar[str] = "limit"
    error_type: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Event):
    """A turn is over."""

    type: ClassVar[str] = "turn"
    turn: int
    observation: str
    final_answer: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd(Event):
    """A run has ended."""

    type: ClassVar[str] = "run_end"
    stop: str
    response: str
    error: str | None
    stats: RunStats
    usage: dict[str, Any] | None
    """Of the whole tree, in the root's run: `UsageSummary.to_dict`."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Event):
    """The end of a stream: what `acompletion` returns. Not part of the log."""

    type: ClassVar[str] = "completed"
    completion: RLMChatCompletion


EVENTS: dict[str, type[Event]] = {
    kind.type: kind
    for kind in (
        RunStart,
        TurnStart,
        Reply,
        CellStart,
        Cell,
        BatchStart,
        Subcall,
        BatchEnd,
        ToolCall,
        Compaction,
        LimitReached,
        Turn,
        RunEnd,
    )
}
"""The events of the log, by type."""
