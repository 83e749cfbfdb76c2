"""The present state of a run, read from its tree: the changing part of the console."""

from __future__ import annotations

import time

from rlm.logger.run_nodes import BatchNode, RunNode, TurnNode


def seconds(run: RunNode) -> float:
    """The seconds that a run has taken so far, or took."""
    return max(0.0, time.time() - run.start.time) if run.end is None else run.end.seconds


def doing(run: RunNode) -> tuple[str, float]:
    """The present action of a run, and its start in seconds since 1970."""
    if not run.turns:
        return "starting", run.start.time
    turn = run.turns[-1]
    if turn.end is not None:
        return "asking the model", turn.end.time
    cell = turn.cells[-1].start if turn.cells else None
    if cell is not None:
        return f"running block {cell.number}", cell.time
    if turn.replies:
        return "reading the reply", turn.replies[-1].time
    return "asking the model", run.start.time if turn.start is None else turn.start.time


def turn_line(turn: TurnNode) -> str:
    """A finished turn in one line."""
    cells = [cell.end for cell in turn.cells if cell.end is not None]
    errors = sum(cell.error is not None for cell in cells)
    blocks = "1 block" if len(cells) == 1 else f"{len(cells)} blocks"
    failed = f", {errors} with an error" if errors else ""
    took = "" if turn.end is None else f", {turn.end.seconds:.1f} s"
    return f"turn {turn.number}: {blocks}{failed}{took}"


def batch_name(batch: BatchNode) -> str:
    """The function that the code called."""
    return f"{batch.start.kind}_query" + ("_batched" if batch.start.size > 1 else "")
