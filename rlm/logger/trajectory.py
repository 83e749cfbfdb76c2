"""A completion as it is kept: its turns, their cells, and what those asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rlm._redaction import Redactor
from rlm.events import BatchStart, Cell, Event, Reply, RunEnd, RunStart, Subcall, Turn, TurnStart


@dataclass(slots=True)
class _Run:
    """One run, as far as it came."""

    start: RunStart
    end: RunEnd | None = None
    prompt: list[dict[str, Any]] = field(default_factory=list)
    """The messages that are new since the last reply."""
    reply: Reply | None = None
    blocks: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    """Sub-calls of the cell that runs."""
    iterations: list[dict[str, Any]] = field(default_factory=list)


class Trajectory:
    """Follows one completion by its events, as they happen or as they stand in a log."""

    def __init__(
        self,
        redactor: Redactor | None = None,
        *,
        log_file: str | None = None,
        sink: Callable[[Event], None] | None = None,
    ) -> None:
        """
        Args:
            redactor: takes out what may not be kept.
            log_file: where the events are written.
            sink: writes them there.
        """
        self._redactor = Redactor() if redactor is None else redactor
        self._log_file = log_file
        self._sink = sink
        self._runs: dict[str, _Run] = {}
        self._children: dict[str, _Run] = {}

    @classmethod
    def of(cls, events: Iterable[Event]) -> list[Trajectory]:
        """The completions of a log, in the order in which they began.

        Args:
            events: of `rlm.logger.read_log`.
        """
        roots: dict[str, Trajectory] = {}
        owners: dict[str, Trajectory] = {}
        for event in events:
            if event.run not in owners:
                above = owners.get(event.parent) if event.parent is not None else None
                if above is None and not isinstance(event, RunStart):
                    continue  # the beginning is lost
                owners[event.run] = above or roots.setdefault(event.run, cls())
            owners[event.run].record(event)
        return list(roots.values())

    def record(self, event: Event) -> None:
        """Takes an event of the completion."""
        if self._sink is not None:
            self._sink(event)
        if isinstance(event, RunStart):
            self._begin(event)
        elif (run := self._runs.get(event.run)) is not None:
            self._go_on(run, event)

    def metadata(self) -> dict[str, Any]:
        """`run_metadata` and `iterations`, as `completion.metadata` holds them: plain JSON data. A sub-call that became a run
        of its own has the same under `metadata`."""
        root = next(iter(self._runs.values()), None)
        if root is None:
            return {"run_metadata": {"log_file": self._log_file}, "iterations": []}
        metadata = self._metadata(root)
        metadata["run_metadata"]["log_file"] = self._log_file
        kept: dict[str, Any] = self._redactor.data(metadata)
        return kept

    def _begin(self, event: RunStart) -> None:
        run = self._runs[event.run] = _Run(event)
        if event.call is not None:
            self._children[event.call] = run
        run.prompt = [
            {"role": "system", "content": event.system_prompt},
            {"role": "user", "content": event.first_message},
        ]

    def _go_on(self, run: _Run, event: Event) -> None:
        match event:
            case TurnStart() | BatchStart():
                pass
            case Reply(purpose="turn"):
                run.reply = event
            case Subcall():
                run.calls.append(self._call(event))
            case Cell():
                run.blocks.append(_block(event, run.calls))
                run.calls = []
            case Turn():
                run.iterations.append(_iteration(run, event))
                run.prompt = [{"role": "user", "content": event.observation}]
                run.reply, run.blocks, run.calls = None, [], []
            case RunEnd():
                run.end = event

    def _call(self, event: Subcall) -> dict[str, Any]:
        call = {
            "kind": event.kind,
            "model": event.model,
            "prompt_chars": event.prompt_chars,
            "prompt_head": event.prompt_head,
            "response": event.response,
            "error": event.error,
            "seconds": event.seconds,
            "input_tokens": event.usage.input_tokens,
            "output_tokens": event.usage.output_tokens,
            "cost": event.usage.cost,
        }
        child = self._children.pop(event.call, None)
        if child is not None:
            call["metadata"] = self._metadata(child)
        return call

    def _metadata(self, run: _Run) -> dict[str, Any]:
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
            "iterations": run.iterations,
        }


def _block(event: Cell, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "code": event.code,
        "stdout": event.stdout,
        "stderr": event.stderr,
        "error": event.error,
        "locals": event.locals,
        "execution_time": event.seconds,
        "rlm_calls": calls,
    }


def _iteration(run: _Run, event: Turn) -> dict[str, Any]:
    return {
        "number": event.turn,
        "prompt": run.prompt,
        "response": "" if run.reply is None else run.reply.content,
        "code_blocks": run.blocks,
        "observation": event.observation,
        "final_answer": event.final_answer,
        "iteration_time": event.seconds,
    }
