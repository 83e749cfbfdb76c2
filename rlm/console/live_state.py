"""A completion as it stands while it runs: what the console shows of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from rlm.events import (
    BatchEnd,
    BatchStart,
    Cell,
    CellStart,
    Event,
    Reply,
    RunEnd,
    RunStart,
    Subcall,
    Turn,
    TurnStart,
)
from rlm.types import Usage


@dataclass(slots=True)
class BatchState:
    """A query of the code."""

    start: BatchStart
    done: int = 0
    """Prompts that have been answered, or failed."""
    failed: int = 0
    usage: Usage = field(default_factory=Usage)

    @property
    def name(self) -> str:
        """As the code calls it."""
        return f"{self.start.kind}_query" + ("_batched" if self.start.size > 1 else "")


@dataclass(slots=True)
class RunState:
    """One run of the tree."""

    start: RunStart
    turn: int = 0
    doing: str = "starting"
    since: float = 0.0
    """When it began to do that, in seconds since 1970."""
    turns: list[str] = field(default_factory=list)
    """What became of the turns so far, one line each."""
    cells: int = 0
    """Of this turn."""
    errors: int = 0
    batches: dict[str, BatchState] = field(default_factory=dict)
    """That run."""
    children: dict[str, RunState] = field(default_factory=dict)
    """Child runs that run."""
    end: RunEnd | None = None


class TreeState:
    """Follows one completion by its events."""

    def __init__(self) -> None:
        self.root: RunState | None = None
        self.usage = Usage()
        """Of the whole tree, so far."""
        self.runs: dict[str, RunState] = {}
        """Runs that have not ended, by id."""

    def seconds(self) -> float:
        """How long it has run, or ran."""
        if self.root is None:
            return 0.0
        end = self.root.end
        return max(0.0, time.time() - self.root.start.time) if end is None else end.seconds

    def batch(self, event: Subcall | BatchEnd) -> BatchState | None:
        """The batch that an event belongs to, before it is taken in."""
        run = self.runs.get(event.run)
        return None if run is None else run.batches.get(event.batch)

    def take(self, event: Event) -> None:
        """Takes in an event."""
        if isinstance(event, RunStart):
            self._begin(event)
            return
        run = self.runs.get(event.run)
        if run is None:
            return
        match event:
            case TurnStart():
                run.turn, run.cells, run.errors = event.turn, 0, 0
                run.doing, run.since = "asking the model", event.time
            case Reply():
                self.usage += event.usage
                run.doing, run.since = "reading the reply", event.time
            case CellStart():
                run.doing, run.since = f"running block {event.number}", event.time
            case Cell():
                run.cells += 1
                run.errors += event.error is not None
            case BatchStart():
                run.batches[event.batch] = BatchState(event)
            case Subcall():
                self._answered(run, event)
            case BatchEnd():
                run.batches.pop(event.batch, None)
            case Turn():
                errors = f", {run.errors} with an error" if run.errors else ""
                blocks = "1 block" if run.cells == 1 else f"{run.cells} blocks"
                run.turns.append(f"turn {event.turn}: {blocks}{errors}, {event.seconds:.1f} s")
                run.doing, run.since = "asking the model", event.time
            case RunEnd():
                run.end = event
                self._end(run)

    def _begin(self, event: RunStart) -> None:
        run = self.runs[event.run] = RunState(event, since=event.time)
        above = self.runs.get(event.parent) if event.parent is not None else None
        if above is not None:
            above.children[event.run] = run
        elif self.root is None:
            self.root = run

    def _answered(self, run: RunState, event: Subcall) -> None:
        batch = run.batches.get(event.batch)
        if batch is None:
            return
        batch.done += 1
        batch.failed += event.error is not None
        batch.usage += event.usage
        self.usage += event.usage

    def _end(self, run: RunState) -> None:
        self.runs.pop(run.start.run, None)
        above = self.runs.get(run.start.parent) if run.start.parent is not None else None
        if above is not None:
            above.children.pop(run.start.run, None)
