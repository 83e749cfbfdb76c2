"""The nodes of a run tree, from a run down to one prompt of its code.

    RunNode                   one run: `start`, `end`, the limit that ended it
      TurnNode                one turn: its replies and compactions
        CellNode              one block of code
          BatchNode           one query of that code
            CallNode          one prompt of the query
              RunNode         the child run that answered the prompt

A node holds the events themselves and copies none of their fields. It refers only to nodes below it, so a tree is freed without
a garbage collection. An unfinished run, or a log that was cut off, lacks events: their fields in the nodes are None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from rlm.events import (
    BatchEnd,
    BatchStart,
    Cell,
    CellStart,
    Compaction,
    LimitReached,
    Reply,
    RunEnd,
    RunStart,
    Subcall,
    ToolCall,
    Turn,
    TurnStart,
)
from rlm.types import CodeBlock, Iteration, SubcallRecord, Usage


class EndedCall(Protocol):
    """A sub-call that has ended: the event `Subcall`, or the engine's own object in a run without listeners."""

    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def prompt_chars(self) -> int: ...
    @property
    def prompt_head(self) -> str: ...
    @property
    def response(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def usage(self) -> Usage: ...


def record_of(call: EndedCall) -> SubcallRecord:
    """Returns a sub-call as `completion.iterations` holds it."""
    usage = call.usage
    return SubcallRecord(
        kind=call.kind,
        model=call.model,
        prompt_chars=call.prompt_chars,
        prompt_head=call.prompt_head,
        response=call.response,
        error=call.error,
        seconds=call.seconds,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost=usage.cost,
    )


@dataclass(slots=True, eq=False)
class CallNode:
    """One prompt that has been answered, or has failed. A prompt in flight has no node."""

    event: Subcall
    run: RunNode | None
    """The child run that answered it; None for a plain model call."""

    def record(self) -> SubcallRecord:
        """Returns the sub-call as `completion.iterations` holds it."""
        return record_of(self.event)


@dataclass(slots=True, eq=False)
class BatchNode:
    """One query of the code: a prompt, or a list of prompts."""

    start: BatchStart
    number: int
    """Position among the batches of its run, from 0."""
    calls: list[CallNode] = field(default_factory=list)
    """Its prompts, in the order in which they ended."""
    done: int = 0
    """Prompts that have been answered, or have failed."""
    failed: int = 0
    """Prompts that have failed."""
    usage: Usage = field(default_factory=Usage)
    """Tokens and USD of its plain model calls. The calls of a child run are counted in that run."""
    end: BatchEnd | None = None


@dataclass(slots=True, eq=False)
class CellNode:
    """One block of code and its queries. A thread of the code may ask after the cell has ended; its queries then belong to the
    newest cell."""

    start: CellStart | None = None
    end: Cell | None = None
    """None while the cell runs, or if the run ended first."""
    batches: list[BatchNode] = field(default_factory=list)
    """In the order in which they began."""
    calls: list[CallNode] = field(default_factory=list)
    """The prompts of all batches, in the order in which they ended."""
    children: list[RunNode] = field(default_factory=list)
    """Child runs, in the order in which they began."""
    tools: list[ToolCall] = field(default_factory=list)
    """Calls of custom tools, in the order in which they ended."""
    records: list[SubcallRecord] = field(default_factory=list)
    """The prompts of a run without listeners, which has no events of them, in the order in which they ended."""

    def code_block(self, cell: Cell) -> CodeBlock:
        """Returns the cell as `completion.iterations` holds it.

        Args:
            cell: its `end`.
        """
        return CodeBlock(
            code=cell.code,
            stdout=cell.stdout,
            stderr=cell.stderr,
            error=cell.error,
            locals=cell.locals,
            execution_time=cell.seconds,
            rlm_calls=self.records or [call.record() for call in self.calls],
        )


@dataclass(slots=True, eq=False)
class TurnNode:
    """One turn of a run. The call after the last turn, which asks for the answer alone, is a turn without an end."""

    number: int
    """Counted from 1."""
    start: TurnStart | None = None
    replies: list[Reply] = field(default_factory=list)
    """All model calls of the turn, those for a compaction included."""
    compactions: list[Compaction] = field(default_factory=list)
    cells: list[CellNode] = field(default_factory=list)
    end: Turn | None = None
    """None while the turn is running, or if the run ended first."""

    @property
    def reply(self) -> Reply | None:
        """The reply whose code the turn runs."""
        return next((reply for reply in reversed(self.replies) if reply.purpose == "turn"), None)

    def iteration(self, turn: Turn) -> Iteration:
        """Returns the turn as `completion.iterations` holds it.

        Args:
            turn: its `end`.
        """
        reply = self.reply
        return Iteration(
            number=turn.turn,
            response="" if reply is None else reply.content,
            code_blocks=[cell.code_block(cell.end) for cell in self.cells if cell.end is not None],
            observation=turn.observation,
            final_answer=turn.final_answer,
            iteration_time=turn.seconds,
        )


@dataclass(slots=True, eq=False)
class RunNode:
    """One run: the root's, or a child's."""

    start: RunStart
    call: Subcall | None = None
    """The sub-call that this run answered; None for a root's run, and until that sub-call has ended."""
    turns: list[TurnNode] = field(default_factory=list)
    cell: CellNode | None = None
    """The newest cell, which may have ended."""
    batches: dict[str, BatchNode] = field(default_factory=dict)
    """All batches of the run by their ids, in the order in which they began."""
    batch_count: int = 0
    """Number of batches that have begun."""
    children: dict[str, RunNode] = field(default_factory=dict)
    """Child runs by the ids of the sub-calls that they answer, in the order in which they began."""
    usage: Usage = field(default_factory=Usage)
    """Tokens and USD of this run and of all runs below it, so far."""
    limit: LimitReached | None = None
    end: RunEnd | None = None
    """None while the run is running, or if its process was killed."""
    early: CellNode | None = None
    """Queries before the first cell, from a thread that an earlier completion left in a persistent REPL. They become queries of
    the first cell."""

    def iterations(self) -> list[Iteration]:
        """Returns the turns that have ended, as `completion.iterations` holds them."""
        return [turn.iteration(turn.end) for turn in self.turns if turn.end is not None]

    def walk(self) -> Iterator[RunNode]:
        """Yields this run and all runs below it, each run before its children."""
        waiting = [self]
        while waiting:
            run = waiting.pop()
            yield run
            waiting.extend(reversed(run.children.values()))
