"""The one record of a run: its events, folded into a tree of the nodes of `rlm.logger.run_nodes`.

`completion.iterations`, `completion.metadata`, the console, telemetry and replay all read this tree. It can be folded event by
event while a run goes on, or from a log that was read back.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlm.events import (
    BatchEnd,
    BatchStart,
    Cell,
    CellStart,
    Compaction,
    Event,
    LimitReached,
    Reply,
    RunEnd,
    RunStart,
    Subcall,
    ToolCall,
    Turn,
    TurnStart,
)
from rlm.logger.run_nodes import BatchNode, CallNode, CellNode, EndedCall, RunNode, TurnNode, record_of
from rlm.types import Usage


class RunTree:
    """Folds events into runs: of one completion, or of a whole log. Not safe in several threads.

    Events of an unknown kind are skipped, and so are events of a run whose start is missing.
    """

    def __init__(self, *, whole: bool = True) -> None:
        """
        Args:
            whole: whether finished batches and child runs are kept. False keeps only their counts, for listeners that show the
                running part: memory then does not grow with the number of sub-calls.
        """
        self.roots: list[RunNode] = []
        """Runs without a parent, in the order in which they began. A completion has one."""
        self.runs: dict[str, RunNode] = {}
        """All runs by id. With `whole=False` finished child runs are left out."""
        self._whole = whole
        self._above: dict[str, _Above] = {}
        """The runs above a child run, by its id."""
        self._cells: dict[str, CellNode] = {}
        """The cell that asked, by the id of the batch or of the child run."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> RunTree:
        """Returns the tree of a log.

        Args:
            events: what `rlm.logger.read_log` returns.
        """
        tree = cls()
        for event in events:
            tree.take(event)
        return tree

    @property
    def root(self) -> RunNode | None:
        """The first root's run; None before its start."""
        return self.roots[0] if self.roots else None

    def split(self) -> list[RunTree]:
        """Returns a tree for each root's run. The nodes are shared with this tree."""
        trees = []
        for root in self.roots:
            tree = RunTree(whole=self._whole)
            tree.roots.append(root)
            tree.runs.update((run.start.run, run) for run in root.walk())
            tree._above = self._above
            tree._cells = self._cells
            trees.append(tree)
        return trees

    def take(self, event: Event) -> None:
        """Adds one event, in the order in which they happened."""
        if isinstance(event, RunStart):
            self._begin(event)
        elif (run := self.runs.get(event.run)) is not None:
            self._continue_run(run, event)

    def take_batch(self, run: str, batch: str) -> None:
        """Adds a batch of a run without listeners, which has no event.

        Args:
            run: id of the run.
            batch: id of the batch.
        """
        self._cells[batch] = _newest_cell(self.runs[run])

    def take_call(self, batch: str, call: EndedCall) -> None:
        """Adds a sub-call of a run without listeners, which has no event.

        Args:
            batch: id of its batch.
            call: the sub-call.
        """
        self._cells[batch].records.append(record_of(call))

    def _begin(self, event: RunStart) -> None:
        above = self.runs.get(event.parent) if event.parent is not None else None
        run = self.runs[event.run] = RunNode(event)
        if above is None or event.parent is None:
            self._above.pop(event.run, None)  # if the log has a second run with this id
            self.roots.append(run)
        else:
            self._above[event.run] = above, self._above.get(event.parent)
            above.children[event.call or event.run] = run
            cell = self._cells[event.run] = _newest_cell(above)
            cell.children.append(run)

    def _continue_run(self, run: RunNode, event: Event) -> None:
        match event:
            case TurnStart():
                run.turns.append(TurnNode(event.turn, event))
            case Reply():
                _turn(run, event.turn).replies.append(event)
                self._add_usage(run, event.usage)
            case CellStart():
                cell, run.early = run.early or CellNode(), None
                cell.start = event
                _add_cell(run, event.turn, cell)
            case BatchStart():
                cell = self._cells[event.batch] = _newest_cell(run)
                batch = run.batches[event.batch] = BatchNode(event, run.batch_count)
                run.batch_count += 1
                cell.batches.append(batch)
            case Subcall():
                self._end_call(run, event)
            case BatchEnd():
                self._batch_end(run, event)
            case ToolCall():
                if self._whole:
                    _newest_cell(run).tools.append(event)
            case Cell():
                _running_cell(run, event).end = event
            case Compaction():
                _turn(run, event.turn).compactions.append(event)
            case LimitReached():
                run.limit = event
            case Turn():
                _turn(run, event.turn).end = event
            case RunEnd():
                run.end = event

    def _end_call(self, run: RunNode, event: Subcall) -> None:
        batch, child = run.batches.get(event.batch), run.children.get(event.call)
        if child is not None:
            child.call = event
        self._add_usage(run, event.usage)
        if batch is not None:
            batch.done += 1
            batch.failed += event.error is not None
            batch.usage += event.usage
        if self._whole:
            call = CallNode(event, child)
            (self._cells.get(event.batch) or _newest_cell(run)).calls.append(call)
            if batch is not None:
                batch.calls.append(call)
        elif child is not None:
            del run.children[event.call]
            self.runs.pop(child.start.run, None)
            self._above.pop(child.start.run, None)
            cell = self._cells.pop(child.start.run, None)
            if cell is not None and child in cell.children:
                cell.children.remove(child)

    def _batch_end(self, run: RunNode, event: BatchEnd) -> None:
        batch = run.batches.get(event.batch)
        if batch is None:
            return
        batch.end = event
        if not self._whole:
            del run.batches[event.batch]
            cell = self._cells.pop(event.batch, None)
            if cell is not None and batch in cell.batches:
                cell.batches.remove(batch)

    def _add_usage(self, run: RunNode, usage: Usage) -> None:
        run.usage += usage
        above = self._above.get(run.start.run)
        while above is not None:
            node, above = above
            node.usage += usage


_Above = tuple[RunNode, "_Above | None"]
"""The run above a child run, and the runs above that. The order in which runs began, not the ids of a log, makes it: a log may
name parents in a circle, or one id twice."""


def _turn(run: RunNode, number: int) -> TurnNode:
    if not run.turns or run.turns[-1].number != number:
        run.turns.append(TurnNode(number))
    return run.turns[-1]


def _newest_cell(run: RunNode) -> CellNode:
    """The cell to which a new query belongs: the newest one."""
    cell = run.cell
    if cell is None:
        cell = run.early = run.early or CellNode()
    return cell


def _running_cell(run: RunNode, event: Cell) -> CellNode:
    """The cell that an event ends."""
    cells = _turn(run, event.turn).cells
    if not cells or cells[-1].end is not None:
        _add_cell(run, event.turn, CellNode())  # its start is not in the log
    return cells[-1]


def _add_cell(run: RunNode, turn: int, cell: CellNode) -> None:
    _turn(run, turn).cells.append(cell)
    run.cell = cell
