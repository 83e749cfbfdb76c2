"""The values that an `RLM` takes and returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]


class TextPart(TypedDict):
    """A text among the parts of a message."""

    type: Literal["text"]
    text: str


class ImageURL(TypedDict):
    """The address of an image: an http(s) URL that the provider loads, or a data URL that holds the image itself
    (`data:image/png;base64,...`)."""

    url: str
    detail: NotRequired[Literal["auto", "low", "high"]]


class ImagePart(TypedDict):
    """An image among the parts of a message, for models that take images."""

    type: Literal["image_url"]
    image_url: ImageURL


class InputAudio(TypedDict):
    """A sound."""

    data: str
    """Base64, without a `data:` head."""
    format: str
    """"wav", "mp3", ..."""


class AudioPart(TypedDict):
    """A sound among the parts of a message, for models that take sounds."""

    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart = TextPart | ImagePart | AudioPart
Content = str | list[ContentPart]
"""The content of a message: text, or a list of parts in the form of OpenAI's chat API, which the clients of other providers
translate."""


class Native(TypedDict):
    """A reply in the form of its provider, for signed thinking, which must be sent back unchanged."""

    provider: str
    model: str
    content: list[dict[str, Any]]
    """Plain JSON data."""


class Message(TypedDict):
    """One chat message, in the form of OpenAI-compatible servers."""

    role: Role
    content: Content
    reasoning_content: NotRequired[str]
    """Thinking that the server sent apart from the text, for a chat template that puts it back."""
    native: NotRequired[Native]
    """Replaces the other fields when the message goes back to the model that wrote it; other models do not get it."""


def text_of(content: Content) -> str:
    """Returns the text of a message's content, without its images and sounds."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


SamplingArgs = dict[str, Any]
"""Sampling arguments as the provider names them: temperature, top_p, max_tokens, ..."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost of one or of several model calls."""

    input_tokens: int = 0
    """Tokens of prompts."""
    output_tokens: int = 0
    """Tokens of replies, thinking included."""
    cost: float | None = None
    """USD; None if neither the provider reported it nor a price is known."""
    cached_tokens: int = 0
    """The part of `input_tokens` that the server read from its prefix cache."""
    cache_write_tokens: int = 0
    """The part of `input_tokens` that the server wrote to its prefix cache, for providers that charge for it."""

    @property
    def total_tokens(self) -> int:
        """Input and output tokens."""
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
    """Usage of one model in a whole call tree."""

    total_calls: int = 0
    """Model calls."""
    total_input_tokens: int = 0
    """Tokens of prompts."""
    total_output_tokens: int = 0
    """Tokens of replies."""
    total_cost: float | None = None
    """USD; None if no cost is known."""

    def add(self, usage: Usage) -> None:
        """Adds one model call."""
        self.total_calls += 1
        self.total_input_tokens += usage.input_tokens
        self.total_output_tokens += usage.output_tokens
        if usage.cost is not None:
            self.total_cost = (self.total_cost or 0.0) + usage.cost

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON data."""
        return asdict(self)


@dataclass(slots=True)
class UsageSummary:
    """Usage of a whole call tree, by model."""

    model_usage_summaries: dict[str, ModelUsageSummary] = field(default_factory=dict)
    """By the name of the model that answered."""

    def add(self, model: str, usage: Usage) -> None:
        """Adds one model call."""
        self.model_usage_summaries.setdefault(model, ModelUsageSummary()).add(usage)

    @property
    def total_calls(self) -> int:
        """Model calls."""
        return sum(s.total_calls for s in self.model_usage_summaries.values())

    @property
    def total_input_tokens(self) -> int:
        """Tokens of prompts."""
        return sum(s.total_input_tokens for s in self.model_usage_summaries.values())

    @property
    def total_output_tokens(self) -> int:
        """Tokens of replies."""
        return sum(s.total_output_tokens for s in self.model_usage_summaries.values())

    @property
    def total_cost(self) -> float | None:
        """USD; None if no cost is known."""
        costs = [s.total_cost for s in self.model_usage_summaries.values() if s.total_cost is not None]
        return sum(costs) if costs else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON data."""
        return {
            "model_usage_summaries": {
                model: summary.to_dict() for model, summary in self.model_usage_summaries.items()
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UsageSummary:
        """Reads what `to_dict` returned. Fields that this version does not know are left out."""
        models = data["model_usage_summaries"]
        return cls({m: ModelUsageSummary(**_known(ModelUsageSummary, s)) for m, s in models.items()})


class StopReason(StrEnum):
    """Why a run ended."""

    ANSWERED = "answered"
    """The code set `answer["ready"]`."""
    MAX_ITERATIONS = "max_iterations"
    """The turns ran out; the model was asked once more, for its answer alone."""
    TIMEOUT = "timeout"
    """`max_timeout` was reached."""
    TOKEN_LIMIT = "token_limit"
    """`max_tokens` was reached."""
    BUDGET = "budget"
    """`max_budget` was reached."""
    CONTEXT_LENGTH = "context_length"
    """The root's history no longer fits into the window of its model."""
    STOPPED = "stopped"
    """The model server ended the rollout: the endpoint of a training run may."""
    ERROR_THRESHOLD = "error_threshold"
    """`max_errors` cells in a row failed."""
    CANCELLED = "cancelled"
    """The caller cancelled the completion."""
    ERROR = "error"
    """A call of the root's model failed after its retries, or the REPL could not be started."""


@dataclass(slots=True)
class RunStats:
    """Counts of one run, which is called the root here. `sub_...` counts everything below it: sub-calls and child runs. In the
    counts of a child run, sub-calls and tokens are 0: they are counted in the run at the top."""

    turns: int = 0
    """Turns of the root."""
    cells: int = 0
    """Cells of the root."""
    cell_errors: int = 0
    """Cells of the root that failed."""
    subcalls: int = 0
    """Prompts that code sent to sub-models and child runs, at every depth."""
    subcall_failures: int = 0
    """Prompts among them that got no answer."""
    root_input_tokens: int = 0
    """Tokens of the root's prompts."""
    root_output_tokens: int = 0
    """Tokens of the root's replies."""
    sub_input_tokens: int = 0
    """Tokens of prompts below the root."""
    sub_output_tokens: int = 0
    """Tokens of replies below the root."""
    truncated: int = 0
    """Replies of the root that the token limit of a call cut off."""
    answered: bool = False
    """Whether the code set an answer ready."""
    forced_answer: bool = False
    """Whether the answer came from the extra call after the last turn."""
    compactions: int = 0
    """How often notes replaced the history."""
    model_seconds: float = 0.0
    """Seconds that the root waited for its model."""
    repl_seconds: float = 0.0
    """Seconds that the root's cells ran, their sub-calls included."""


@dataclass(slots=True)
class SubcallRecord:
    """One sub-call. It holds the size and the beginning of its prompt, not the whole prompt."""

    kind: str
    """"llm" or "rlm": the query function that the code called."""
    model: str
    """Name by which the run knows the model."""
    prompt_chars: int = 0
    """Characters of the prompt; for a child run the size of its context."""
    prompt_head: str = ""
    """The first 200 characters of the prompt."""
    response: str = ""
    """The answer; empty if the sub-call failed."""
    error: str | None = None
    """Why the sub-call failed; None if it did not."""
    seconds: float = 0.0
    """How long it took."""
    input_tokens: int = 0
    """Tokens of the prompt; 0 for a child run."""
    output_tokens: int = 0
    """Tokens of the reply; 0 for a child run."""
    cost: float | None = None
    """USD; None if it is not known, and for a child run."""


@dataclass(slots=True)
class CodeBlock:
    """One cell that a turn ran."""

    code: str
    """The block as the model wrote it."""
    stdout: str
    """What the code printed, bounded in length."""
    stderr: str
    """What the code wrote to stderr, its traceback included, bounded in length."""
    error: str | None
    """The error in one line; None if the cell ended well."""
    locals: dict[str, str]
    """User names after the cell, with a short description of each value."""
    execution_time: float
    """Seconds."""
    rlm_calls: list[SubcallRecord] = field(default_factory=list)
    """The sub-calls of the cell, in the order in which they ended."""


@dataclass(slots=True)
class Iteration:
    """One turn of the root."""

    number: int
    """Counted from 1."""
    response: str
    """The model's reply."""
    code_blocks: list[CodeBlock]
    """The cells that ran, in order. Blocks after a cell that ended the turn did not run and are left out."""
    observation: str
    """What the model was told about the turn; empty for the last one."""
    final_answer: str | None
    """The answer, if the turn ended the run."""
    iteration_time: float
    """Seconds."""


@dataclass(slots=True)
class RLMChatCompletion:
    """The result of a completion: its answer, why it ended, its usage and its turns."""

    root_model: str
    """Name of the root's model."""
    prompt: Any
    """The input as it was given. `to_dict` replaces it by its kind, size and SHA-256."""
    response: str
    """The answer; empty if there is none."""
    usage_summary: UsageSummary
    """Calls, tokens and USD of the whole call tree."""
    execution_time: float
    """Seconds."""
    metadata: dict[str, Any] | None = None
    """`run_metadata` and `iterations` as plain JSON data without secrets; None without a logger."""
    error: str | None = None
    """Why the run ended early; None if it ended by itself."""
    stop: StopReason = StopReason.ANSWERED
    """Why the run ended."""
    stats: RunStats = field(default_factory=RunStats)
    """Counts of the run."""
    messages: list[Message] = field(default_factory=list)
    """The root's history, exactly as it was sent and received; after a compaction, only the part since the last one."""
    iterations: list[Iteration] = field(default_factory=list)
    """The turns of the root. Not part of `to_dict`."""
    parsed: Any = None
    """The answer as the object that `response_format` asks for; None without a `response_format`. Not part of `to_dict`:
    `response` holds the same as JSON."""
    description: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    """Kind, size and SHA-256 of the input as the REPL got it. None if `prompt` is a description itself, as in a result that was
    read back."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON data, in which `prompt` is the description of the input."""
        return {
            "root_model": self.root_model,
            "prompt": self.prompt if self.description is None else self.description,
            "response": self.response,
            "usage_summary": self.usage_summary.to_dict(),
            "execution_time": self.execution_time,
            "metadata": self.metadata,
            "error": self.error,
            "stop": self.stop.value,
            "stats": asdict(self.stats),
            "messages": list(self.messages),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RLMChatCompletion:
        """Reads what `to_dict` returned, also after a trip through JSON. Fields that this version does not know are left out.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: the data is no result of `to_dict`.
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
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict())


def _known(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """The part of the data that a dataclass has fields for."""
    return {f.name: data[f.name] for f in fields(kind) if f.name in data}


def total(usages: Sequence[Usage]) -> Usage:
    """Returns the sum of several usages."""
    result = Usage()
    for usage in usages:
        result += usage
    return result


@dataclass(frozen=True, slots=True)
class MapInput:
    """An input of a map with a question of its own."""

    prompt: Any
    """The input, as `RLM.completion` takes it."""
    root_prompt: str | None = None
    """The question; None if the input itself holds it."""


@dataclass(frozen=True, slots=True)
class MapItem:
    """The result of one input of a map."""

    index: int
    """Position of the input, counted from 0."""
    completion: RLMChatCompletion | None
    """The result. For a failed input, the run up to the error, or None. Its `prompt` is the input's description: kind, size,
    sha256."""
    error: Exception | None = None
    """Why the input failed; None if it did not."""

    @property
    def response(self) -> str | None:
        """The answer; None if the input failed."""
        return None if self.completion is None or self.error is not None else self.completion.response


@dataclass(frozen=True, slots=True)
class MapProgress:
    """The progress of a map."""

    done: int
    """Inputs that have an answer, answers of an earlier run included."""
    failed: int
    """Inputs that have failed."""
    total: int | None
    """Number of inputs; None if it is not known before the last one has been read."""
    cost: float | None
    """USD spent so far, an earlier run excluded; None if no cost is known."""
