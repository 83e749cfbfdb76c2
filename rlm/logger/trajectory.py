"""The trajectory of a completion: its turns, the cells of each turn and the sub-calls of each cell, as plain JSON data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rlm._redaction import Redactor, jsonable
from rlm.events import Event
from rlm.logger.run_nodes import CallNode, CellNode, RunNode
from rlm.logger.run_tree import RunTree


class Trajectory:
    """Records the events of one completion for `completion.metadata`: events that happen, or events of a log."""

    def __init__(
        self,
        redactor: Redactor | None = None,
        *,
        log_file: str | None = None,
        sink: Callable[[Event], None] | None = None,
    ) -> None:
        """
        Args:
            redactor: takes secrets out of `metadata`. None: a new one, which knows the present secrets.
            log_file: path of the event log, for `run_metadata`.
            sink: writes an event to that log.
        """
        self._redactor = Redactor() if redactor is None else redactor
        self._log_file = log_file
        self._sink = sink
        self._tree = RunTree()

    @classmethod
    def of(cls, events: Iterable[Event]) -> list[Trajectory]:
        """The trajectories of the completions in a log, in the order in which they began.

        Args:
            events: what `rlm.logger.read_log` returns. Events of a completion whose start is missing are left out.
        """
        trajectories = []
        for tree in RunTree.of(events).split():
            trajectory = cls()
            trajectory._tree = tree
            trajectories.append(trajectory)
        return trajectories

    def record(self, event: Event) -> None:
        """Records one event of the completion, and writes it to the log if there is one."""
        if self._sink is not None:
            self._sink(event)
        self._tree.take(event)

    def metadata(self) -> dict[str, Any]:
        """Returns `run_metadata` and `iterations`, as `completion.metadata` holds them: plain JSON data without secrets. A
        sub-call that a child run answered has the same two under `metadata`."""
        root = self._tree.root
        metadata = {"run_metadata": {}, "iterations": []} if root is None else _metadata(root)
        metadata["run_metadata"]["log_file"] = self._log_file
        redacted: dict[str, Any] = self._redactor.data(metadata)
        return redacted


def _metadata(run: RunNode) -> dict[str, Any]:
    start, end = run.start, run.end
    return {
        "run_metadata": {
            "run": start.run,
            "model": start.model,
            "question": start.question,
            "context": start.context,
            "system_prompt": start.system_prompt,
            "first_message": start.first_message,
            "max_iterations": start.max_iterations,
            "max_depth": start.max_depth,
            "sampling": start.sampling,
            "stop": None if end is None else end.stop,
            "error": None if end is None else end.error,
        },
        "iterations": _iterations(run),
    }


def _iterations(run: RunNode) -> list[dict[str, Any]]:
    """The turns that have ended. `prompt` holds the messages that are new since the last reply."""
    iterations = []
    prompt = [
        {"role": "system", "content": run.start.system_prompt},
        {"role": "user", "content": run.start.first_message},
    ]
    for turn in run.turns:
        if turn.end is not None:
            blocks = [_block(cell) for cell in turn.cells if cell.end is not None]
            data = jsonable(turn.iteration(turn.end))
            iterations.append({**data, "prompt": prompt, "code_blocks": blocks})
            prompt = [{"role": "user", "content": turn.end.observation}]
    return iterations


def _block(cell: CellNode) -> dict[str, Any]:
    assert cell.end is not None
    return {**jsonable(cell.code_block(cell.end)), "rlm_calls": [_call(call) for call in cell.calls]}


def _call(call: CallNode) -> dict[str, Any]:
    data: dict[str, Any] = jsonable(call.record())
    if call.run is not None:
        data["metadata"] = _metadata(call.run)
    return data
