"""The outcome of a rollout, which the harness writes to `trace.info["rlm"]`.

The harness writes it, once; rewards, metrics, groups and reports read it. In the trace it is plain JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from rlm.types import RunStats

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

    T = TypeVar("T")

INFO_KEY = "rlm"
"""Key of a rollout's outcome in `trace.info`."""


@dataclass(frozen=True, slots=True)
class RolloutFailure:
    """The failure of a rollout."""

    where: str
    """Place: "context", "repl", "model", "limit", "config", "engine" or "cancelled"."""
    type: str
    """Name of the exception's class."""
    message: str
    traceback: str | None = None
    """End of the traceback; None unless `where` is "engine"."""


@dataclass(slots=True)
class DirectUsage:
    """The model calls of one rollout that bypassed its endpoint."""

    calls: int = 0
    """Calls that were made, failed ones and the turns of child runs included."""
    failures: int = 0
    """Calls that failed after all retries."""
    retries: int = 0
    """Attempts that failed before a call succeeded."""
    input_tokens: int = 0
    cached_tokens: int = 0
    """The part of `input_tokens` that the server took from its prefix cache."""
    output_tokens: int = 0
    seconds: float = 0.0
    """Sum of the calls' durations in seconds; concurrent calls each count in full."""


@dataclass(frozen=True, slots=True)
class RolloutInfo:
    """The outcome of a rollout. The defaults are those of a rollout that another harness ran."""

    answer: str = ""
    """The answer that the RLM set, empty if there is none. Rewards read this and nothing else that the model wrote."""
    stop: str | None = None
    """Why the run ended: a value of `rlm.types.StopReason`."""
    failure: RolloutFailure | None = None
    """The failure; None if nothing failed."""
    stats: RunStats = field(default_factory=RunStats)
    """Counts of the run."""
    usage: Mapping[str, Any] | None = None
    """`rlm.types.UsageSummary` as JSON; None if the run gave no result."""
    seconds: float = 0.0
    """Duration of the run in seconds."""
    idle_turns: int = 0
    """Turns of the root whose reply held no code that could run."""
    direct: DirectUsage | None = None
    """Model calls below the root, with `train_subcalls = "direct"`; else None."""
    root_nodes: list[int] | None = None
    """Numbers of the trace's nodes that are the root's own. The other nodes belong to sub-calls and child runs. None
    until the rollout's clean-up."""

    @classmethod
    def of(cls, trace: AnyTrace) -> RolloutInfo:
        """Reads the outcome of a trace."""
        return cls.from_dict(trace.info.get(INFO_KEY))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> RolloutInfo:
        """Reads what `to_dict` wrote. Unknown keys, of another version of this package, are ignored.

        Raises:
            TypeError: a value is not of its field's type.
        """
        values = {name: value for name, value in (data or {}).items() if value is not None}
        for name, kind in (("failure", RolloutFailure), ("stats", RunStats), ("direct", DirectUsage)):
            if name in values:
                values[name] = _read(kind, values[name])
        return _read(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain JSON, without `direct`, `root_nodes` and a failure's `traceback` where they are None."""
        data = dataclasses.asdict(self)
        for values, name in ((data, "direct"), (data, "root_nodes"), (data["failure"] or {}, "traceback")):
            if values.get(name) is None:
                values.pop(name, None)
        return data

    def store(self, trace: AnyTrace) -> None:
        """Writes the outcome into a trace."""
        trace.info[INFO_KEY] = self.to_dict()


def answer_of(trace: AnyTrace) -> str:
    """The answer that the RLM set: the only text that a reward should read. Empty if there is none."""
    return RolloutInfo.of(trace).answer


def _read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Makes a dataclass of the values that it has fields for."""
    known = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type] # all kinds are dataclasses
    return kind(**{name: value for name, value in values.items() if name in known})
