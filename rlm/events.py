"""What happens in a run, as typed events. `RLM.stream` yields them; event log, console and telemetry are made from them.

A completion is a tree: one root's run and the child runs below it. The input of a run is never part of an event; events hold
its kind, size and hash. Keys and headers of clients are never part of an event.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rlm.types import Message, RLMChatCompletion, RunStats, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The fields of every event."""

    type: ClassVar[str] = ""
    """Name of the event in the log."""
    time: float
    """When it happened, in seconds since 1970."""
    run: str
    """Id of the run it belongs to."""
    parent: str | None
    """Id of the run above; None for the root's run."""
    depth: int
    """Depth of the run; 0 for the root's run."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields and the type as plain data."""
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart(Event):
    """A run begins: the root's, or a child's."""

    type: ClassVar[str] = "run_start"
    model: str
    """Name of the model that plays the run."""
    question: str | None
    """None if the context holds the question."""
    context: dict[str, Any]
    """kind, size and sha256 of the newest context."""
    earlier_contexts: int = 0
    """Number of contexts of earlier completions in the same REPL."""
    system_prompt: str
    """Empty for a plain model call (`max_depth=0`)."""
    first_message: str
    """The first user message; empty for a plain model call, whose message is the input."""
    max_iterations: int
    """Turns that the run may take."""
    max_depth: int
    """Depth that the tree may reach."""
    call: str | None = None
    """Id of the sub-call that this run answers; None for the root's run."""
    context_length: int | None = None
    """Window of `model` in tokens; None if it is unknown."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling arguments of this run's own model calls."""
    sub_sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling arguments of all model calls below this run."""
    models: dict[str, dict[str, str]] = field(default_factory=dict)
    """The models that the code may name, the default first: `model` and `provider` of each. Empty for a child run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStart(Event):
    """A turn begins: the model is asked next."""

    type: ClassVar[str] = "turn_start"
    turn: int
    """Counted from 1; `max_iterations + 1` for the call that asks for the answer alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall(Event):
    """The fields of a model call that has ended, whether the run or its code made it."""

    model: str
    """Name by which the run knows the model."""
    message: Message | None = None
    """The reply as it goes back into the chat; None if the call failed, and for a child run."""
    refusal: str | None = None
    """The model's refusal; None if it did not refuse."""
    finish_reason: str | None = None
    """Why the model stopped, as its server says it; None if the server did not say, or the call failed."""
    usage: Usage = field(default_factory=Usage)
    """Tokens and USD of the call; zero if it failed, and for a child run, whose own calls are counted."""
    retries: int = 0
    """Attempts that failed before the last one."""
    error: str | None = None
    """Why the call failed; None if it did not."""
    error_type: str | None = None
    """Name of the error's class in `rlm.errors`."""
    seconds: float
    """How long the call took, its retries included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(ModelCall):
    """The run's model replied, or its call failed."""

    type: ClassVar[str] = "reply"
    turn: int
    """The turn in which the model was asked, counted from 1."""
    purpose: str = "turn"
    """"turn", "answer" (the call after the last turn) or "compaction"."""
    request: str
    """Key of the request: `rlm.engine.request_keys.request_key`."""
    content: str
    """Text of the reply; empty if the call failed."""
    reasoning: str | None = None
    """Thinking that the server sent apart from the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStart(Event):
    """A block of code begins to run."""

    type: ClassVar[str] = "cell_start"
    turn: int
    """The turn whose reply holds the block, counted from 1."""
    number: int
    """Position of the block in its reply, counted from 1."""
    code: str
    """The block as the model wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell(Event):
    """A block of code has run."""

    type: ClassVar[str] = "cell"
    turn: int
    """The turn whose reply holds the block, counted from 1."""
    number: int
    """Position of the block in its reply, counted from 1."""
    code: str
    """The block as the model wrote it."""
    status: str
    """How the cell ended: a value of `rlm.environments.CellStatus`."""
    stdout: str
    """What the code printed, bounded in length."""
    stderr: str
    """What the code wrote to stderr, its traceback included, bounded in length."""
    error: str | None
    """The error in one line; None if the cell ended well."""
    locals: dict[str, str]
    """User names after the cell, with a short description of each value."""
    answer: dict[str, Any]
    """The code's `answer`: content, ready, note."""
    seconds: float
    """How long the cell ran, its sub-calls included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStart(Event):
    """The code asks sub-models: one prompt, or a list of prompts."""

    type: ClassVar[str] = "batch_start"
    batch: str
    """Id of the batch; each of its sub-calls has it."""
    kind: str
    """"llm" or "rlm": the query function that the code called."""
    model: str
    """Name of the model that is asked."""
    size: int
    """Number of prompts."""
    children: bool
    """Whether each prompt becomes a child run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subcall(ModelCall):
    """One prompt of a batch has been answered, or has failed."""

    type: ClassVar[str] = "subcall"
    batch: str
    """Id of the batch."""
    index: int
    """Position of the prompt in its batch, counted from 0."""
    call: str
    """Id of the sub-call; the child run that answered it has it too."""
    kind: str
    """"llm" or "rlm": the query function that the code called."""
    request: str | None
    """Key of the request: `rlm.engine.request_keys.request_key`; None for a child run."""
    prompt_chars: int
    """Length of the prompt in characters; for a child run its size."""
    prompt_head: str
    """The first 200 characters of the prompt."""
    response: str
    """The answer that the code got; empty if the sub-call failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnd(Event):
    """All prompts of a batch have been answered, or have failed."""

    type: ClassVar[str] = "batch_end"
    batch: str
    """Id of the batch."""
    failed: int
    """Number of prompts without an answer."""
    seconds: float
    """How long the batch took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall(Event):
    """The code called a custom tool."""

    type: ClassVar[str] = "tool_call"
    name: str
    """Name of the tool."""
    error: str | None
    """Why the call failed; None if it did not."""
    seconds: float
    """How long the call took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction(Event):
    """The history was replaced by a summary of it."""

    type: ClassVar[str] = "compaction"
    turn: int
    """The turn before which it happened, counted from 1."""
    tokens_before: int
    """Tokens of the history before, estimated."""
    tokens_after: int
    """Tokens of the history after, estimated."""
    summary: str
    """Empty if the model could not write one."""
    seconds: float
    """How long it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReached(Event):
    """A limit of the tree was reached, or the caller cancelled it. At most once in a tree, in the root's run."""

    type: ClassVar[str] = "limit"
    error_type: str
    """Name of the error's class in `rlm.errors`."""
    message: str
    """Which limit, and its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Event):
    """A turn is over."""

    type: ClassVar[str] = "turn"
    turn: int
    """Counted from 1."""
    observation: str
    """What the model is told about the turn; empty for the last one."""
    final_answer: str | None
    """The answer, if the turn ended the run."""
    seconds: float
    """How long the turn took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd(Event):
    """A run has ended."""

    type: ClassVar[str] = "run_end"
    stop: str
    """Why it ended: a value of `rlm.types.StopReason`."""
    response: str
    """The answer, or the best that there was; may be empty."""
    error: str | None
    """Class and message of the error that ended the run; None if it ended by itself."""
    stats: RunStats
    """Counts of the run; in the root's run also of everything below it."""
    usage: dict[str, Any] | None
    """`UsageSummary.to_dict` of the whole tree; None for a child run."""
    seconds: float
    """How long the run took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed(Event):
    """The last event of a stream, with the result that `acompletion` returns. Not part of the log."""

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
