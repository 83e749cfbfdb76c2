"""Values that the engine takes and returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]


class TextPart(TypedDict):
    """A piece of text among the parts of a message."""

    type: Literal["text"]
    text: str


class ImageURL(TypedDict):
    """Where an image is: an http(s) URL that the provider loads, or a data URL that holds it
    (`data:image/png;base64,...`)."""

    url: str
    detail: NotRequired[Literal["auto", "low", "high"]]


class ImagePart(TypedDict):
    """An image among the parts of a message, for models that take them."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(TypedDict):
    """A sound: base64 without a head, and what it is ("wav", "mp3", ...)."""

    data: str
    format: str


class AudioPart(TypedDict):
    """A sound among the parts of a message, for models that take them."""

    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart = TextPart | ImagePart | AudioPart
Content = str | list[ContentPart]
"""What a message says: text, or a list of parts in the form of OpenAI's chat API. Clients of other providers translate."""


class Native(TypedDict):
    """A reply in its provider's own form: signed thinking that has to go back unchanged. Plain JSON data."""

    provider: str
    model: str
    content: list[dict[str, Any]]


class Message(TypedDict):
    """One chat message, in the form that OpenAI-compatible servers take."""

    role: Role
    content: Content
    reasoning_content: NotRequired[str]
    native: NotRequired[Native]
    """Sent in place of the rest to the model that wrote it, and to nobody else."""


def text_of(content: Content) -> str:
    """The text of a message's content, without its images and sounds."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


SamplingArgs = dict[str, Any]
"""Sampling arguments as the provider names them: temperature, top_p, max_tokens, ..."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, and USD where the provider reports them, of one or of several model calls."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    """USD; None when nobody said."""
    cached_tokens: int = 0
    """The part of `input_tokens` that the server took from its prefix cache."""
    cache_write_tokens: int = 0
    """The part of `input_tokens` that the server wrote to its prefix cache, where that has a price of its own."""

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        cost = self.cost
        if other.cost is not None:
            cost = other.cost if cost is None else cost + other.cost
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            cost,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(slots=True)
class ModelUsageSummary:
    """What one model was asked for: calls, tokens and USD, children and sub-calls included."""

    total_calls: int = 0
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_cost: float | None = None

    def add(self, usage: Usage) -> None:
        self.total_calls += 1
        self.total_input_tokens += usage.input_tokens
        self.total_output_tokens += usage.output_tokens
        if usage.cost is not None:
            self.total_cost = (self.total_cost or 0.0) + usage.cost

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(slots=True)
class UsageSummary:
    """Usage of a whole call tree, under the names of the models that served it."""

    model_usage_summaries: dict[str, ModelUsageSummary] = field(default_factory=dict)

    def add(self, model: str, usage: Usage) -> None:
        self.model_usage_summaries.setdefault(model, ModelUsageSummary()).add(usage)

    @property
    def total_calls(self) -> int:
        return sum(s.total_calls for s in self.model_usage_summaries.values())

    @property
    def total_input_tokens(self) -> int:
        return sum(s.total_input_tokens for s in self.model_usage_summaries.values())

    @property
    def total_output_tokens(self) -> int:
        return sum(s.total_output_tokens for s in self.model_usage_summaries.values())

    @property
    def total_cost(self) -> float | None:
        costs = [s.total_cost for s in self.model_usage_summaries.values() if s.total_cost is not None]
        return sum(costs) if costs else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_usage_summaries": {
                model: summary.to_dict() for model, summary in self.model_usage_summaries.items()
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UsageSummary:
        """Reads what `to_dict` wrote; what a later version added is left out."""
        models = data["model_usage_summaries"]
        return cls({m: ModelUsageSummary(**_known(ModelUsageSummary, s)) for m, s in models.items()})


class StopReason(StrEnum):
    """Why a run ended."""

    ANSWERED = "answered"
    """The code set `answer["ready"]`."""
    MAX_ITERATIONS = "max_iterations"
    """Turns ran out; the model was asked for its answer once more."""
    TIMEOUT = "timeout"
    TOKEN_LIMIT = "token_limit"
    BUDGET = "budget"
    CONTEXT_LENGTH = "context_length"
    """The root's history no longer fits the model's window."""
    STOPPED = "stopped"
    """The model server said that the rollout is over."""
    ERROR_THRESHOLD = "error_threshold"
    """`max_errors` cells in a row failed."""
    CANCELLED = "cancelled"
    ERROR = "error"
    """A model call failed for good, or the REPL could not be had."""


@dataclass(slots=True)
class RunStats:
    """Counts of one run. "Sub" is everything below the root: sub-calls and child runs."""

    turns: int = 0
    cells: int = 0
    cell_errors: int = 0
    subcalls: int = 0
    """Prompts that the code sent to sub-models and child runs, at every depth."""
    subcall_failures: int = 0
    root_input_tokens: int = 0
    root_output_tokens: int = 0
    sub_input_tokens: int = 0
    sub_output_tokens: int = 0
    truncated: int = 0
    """Root replies that were cut by the token limit of a call."""
    answered: bool = False
    """There is an answer that the code set ready."""
    forced_answer: bool = False
    """The answer came from the extra call after the last turn."""
    compactions: int = 0
    """Times that the history was replaced by notes."""
    model_seconds: float = 0.0
    """Wall-clock time that the root waited for its model."""
    repl_seconds: float = 0.0
    """Wall-clock time of the root's cells, their sub-calls included."""


@dataclass(slots=True)
class SubcallRecord:
    """One sub-call, as logs and trajectories hold it: its prompt by size and beginning only."""

    kind: str
    """"llm" or "rlm"."""
    model: str
    prompt_chars: int = 0
    prompt_head: str = ""
    response: str = ""
    error: str | None = None
    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    """USD; None when nobody said."""


@dataclass(slots=True)
class CodeBlock:
    """One executed cell of a turn."""

    code: str
    stdout: str
    stderr: str
    error: str | None
    """One line, None if the cell ended well."""
    locals: dict[str, str]
    """User names after the cell and a short description of each value."""
    execution_time: float
    """Seconds."""
    rlm_calls: list[SubcallRecord] = field(default_factory=list)
    """The sub-calls that the cell made, in the order in which they ended."""


@dataclass(slots=True)
class Iteration:
    """One turn of the root."""

    number: int
    """Counted from 1."""
    response: str
    code_blocks: list[CodeBlock]
    observation: str
    """What the model was told about the turn."""
    final_answer: str | None
    iteration_time: float
    """Seconds."""


Description = dict[str, Any] | Callable[[Any], dict[str, Any]]
"""Kind, size and SHA-256 of an input; or a function that computes them from it, for an input that cannot have changed: so it
is hashed only if the result is serialised."""


@dataclass(slots=True)
class RLMChatCompletion:
    """What a run returned and what it took."""

    root_model: str
    prompt: Any
    """The input as it was given; `to_dict` describes it by kind, size and SHA-256."""
    response: str
    """The answer; empty if there is none."""
    usage_summary: UsageSummary
    execution_time: float
    """Seconds."""
    metadata: dict[str, Any] | None = None
    """`run_metadata` and `iterations`, if a logger was given."""
    error: str | None = None
    """What went wrong, if the run did not end by itself."""
    stop: StopReason = StopReason.ANSWERED
    stats: RunStats = field(default_factory=RunStats)
    messages: list[Message] = field(default_factory=list)
    """The root's history, exactly as it was sent and received; from the last compaction on, if there was one."""
    iterations: list[Iteration] = field(default_factory=list)
    parsed: Any = None
    """The answer as the object that `response_format` asks for; None without one. Not part of `to_dict`, as `response` holds
    it as JSON."""
    description: Description | None = field(default=None, repr=False, compare=False)
    """The input as the REPL was given it. None if `prompt` is a description itself, as in a result that was read back."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON data. `prompt` becomes the description of the input."""
        description = self.description
        if callable(description):
            description = description(self.prompt)
        return {
            "root_model": self.root_model,
            "prompt": self.prompt if description is None else description,
            "response": self.response,
            "usage_summary": self.usage_summary.to_dict(),
            "execution_time": self.execution_time,
            "metadata": self.metadata,
            "error": self.error,
            "stop": self.stop.value,
            "stats": {f.name: getattr(self.stats, f.name) for f in fields(RunStats)},
            "messages": list(self.messages),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RLMChatCompletion:
        """Reads what `to_dict` wrote (also after a trip through JSON); what a later version added is left out.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: it is something else.
        """
        return cls(
            root_model=data["root_model"],
            prompt=data["prompt"],
            response=data["response"],
            usage_summary=UsageSummary.from_dict(data["usage_summary"]),
            execution_time=data["execution_time"],
            metadata=data.get("metadata"),
            error=data.get("error"),
            stop=StopReason(data.get("stop", "answered")),
            stats=RunStats(**_known(RunStats, data.get("stats", {}))),
            messages=list(data.get("messages", ())),
        )

    def to_json(self) -> str:
        return json.dumps(self.to_dict())


def _known(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """Of the data the fields that a dataclass has."""
    return {f.name: data[f.name] for f in fields(kind) if f.name in data}


def total(usages: Sequence[Usage]) -> Usage:
    """The sum of several usages."""
    result = Usage()
    for usage in usages:
        result += usage
    return result


@dataclass(frozen=True, slots=True)
class MapInput:
    """An input that has a question of its own."""

    prompt: Any
    root_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class MapItem:
    """What became of one input."""

    index: int
    """Of the input, from 0."""
    completion: RLMChatCompletion | None
    """Also of a failed one, as far as it came. Its `prompt` is a description of the input (kind, size, sha256)."""
    error: Exception | None = None

    @property
    def response(self) -> str | None:
        """The answer; None if there is none."""
        return None if self.completion is None or self.error is not None else self.completion.response


@dataclass(frozen=True, slots=True)
class MapProgress:
    """How far a map has come."""

    done: int
    """Inputs that have an answer, those of an earlier run included."""
    failed: int
    total: int | None
    """None if nobody knows how many inputs there are."""
    cost: float | None
    """USD that were spent by now, those of an earlier run excluded; None if no price is known."""
