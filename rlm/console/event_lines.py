"""The lines of text that the console shows for an event."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlm._redaction import Redactor
from rlm.console.live_state import batch_name
from rlm.events import (
    BatchEnd,
    BatchStart,
    Cell,
    Compaction,
    Event,
    LimitReached,
    Reply,
    RunEnd,
    RunStart,
    Subcall,
    ToolCall,
)
from rlm.logger.run_nodes import BatchNode
from rlm.logger.run_tree import RunTree
from rlm.types import Usage

_MOST_LINES = 30
"""Lines of one text that are shown."""
_MOST_CHARACTERS = 300
"""Characters of one line that are shown."""
_MOST_FAILURES = 3
"""Failed prompts of one batch that are shown."""
# Control sequences of terminals. Texts come from a model or its code, and must not move the cursor or set the title.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the console."""

    text: str
    style: str = ""


class Writer:
    """Makes the lines of events.

    Args:
        runs: the runs of the completion. An event is added to them after its lines have been made.
        redactor: takes secrets out of texts.
    """

    def __init__(self, runs: RunTree, redactor: Redactor) -> None:
        self._runs = runs
        self._redactor = redactor

    def lines(self, event: Event) -> list[Line]:
        """The lines of an event; many events have none."""
        match event:
            case RunStart():
                lines = self._run_start(event)
            case Reply():
                lines = self._reply(event)
            case Cell():
                lines = self._cell(event)
            case BatchStart() if event.size > 1:
                name = f"{event.kind}_query_batched"
                lines = [Line(f"  ○ {name}: {event.size:,} prompts to {self.short(event.model)}", "dim")]
            case Subcall():
                lines = self._subcall(event)
            case BatchEnd():
                lines = self._batch_end(event)
            case ToolCall():
                end = f": {self.short(event.error)}" if event.error else ""
                style = "red" if event.error else "dim"
                lines = [Line(f"  ◇ tool {self.short(event.name)} in {event.seconds:.1f} s{end}", style)]
            case Compaction():
                size = f"{event.tokens_before:,} to about {event.tokens_after:,} tokens"
                lines = [Line(f"  ◌ history compacted: {size} in {event.seconds:.1f} s", "yellow")]
            case LimitReached():
                lines = [Line(f"! {event.error_type}: {self.short(event.message)}", "bold yellow")]
            case RunEnd():
                lines = self._run_end(event)
            case _:
                lines = []
        return lines

    def short(self, text: str) -> str:
        """The beginning of a text in one line, without secrets and control characters."""
        line = " ".join(self._clean(text[: 2 * _MOST_CHARACTERS]).split())
        return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."

    def _clean(self, text: str) -> str:
        return _CONTROL.sub("", self._redactor.text(text).replace("\r\n", "\n"))

    def _head(self, text: str, style: str = "") -> list[Line]:
        """The first lines of a text."""
        lines = self._clean(text).strip("\n").split("\n")
        shown = [Line(f"  {line[:_MOST_CHARACTERS]}".rstrip(), style) for line in lines[:_MOST_LINES]]
        if len(lines) > _MOST_LINES:
            shown.append(Line(f"  ... {len(lines) - _MOST_LINES:,} more lines", "dim"))
        return shown if text.strip() else []

    def _run_start(self, event: RunStart) -> list[Line]:
        question = self.short(event.question) if event.question else "(the context is the request)"
        kind, size = event.context.get("kind"), event.context.get("size", 0)
        return [
            Line(f"▶ {self.short(event.model)}  {question}", "bold"),
            Line(f"  context: {kind} of {size:,}", "dim"),
        ]

    def _reply(self, event: Reply) -> list[Line]:
        if event.error is not None:
            return [Line(f"◆ no reply after {event.seconds:.1f} s: {self.short(event.error)}", "red")]
        what = "reply" if event.purpose == "turn" else f"reply ({event.purpose})"
        lines = [Line(f"◆ {what} in {event.seconds:.1f} s, {tokens(event.usage)}", "cyan")]
        return lines + self._head(event.content or event.refusal or "(empty)")

    def _cell(self, event: Cell) -> list[Line]:
        style = "green" if event.error is None else "red"
        lines = [Line(f"■ block {event.number}: {event.status} in {event.seconds:.2f} s", style)]
        lines += self._head(event.stdout) + self._head(event.stderr, "red")
        if event.error is not None and event.error not in event.stderr:
            lines += self._head(event.error, "red")
        return lines

    def _subcall(self, event: Subcall) -> list[Line]:
        batch = self._batch(event)
        single = batch is None or batch.start.size == 1
        if not single and (event.error is None or (batch is not None and batch.failed >= _MOST_FAILURES)):
            return []
        name = f"{event.kind}_query" if single else f"prompt {event.index + 1:,}"
        text = f"  ○ {name} of {event.prompt_chars:,} characters in {event.seconds:.1f} s"
        if event.error is not None:
            return [Line(f"{text}: failed: {self.short(event.error)}", "red")]
        return [Line(f"{text}: {tokens(event.usage)}", "dim")]

    def _batch_end(self, event: BatchEnd) -> list[Line]:
        batch = self._batch(event)
        if batch is None or batch.start.size == 1:
            return []
        failed = f", {event.failed:,} failed" if event.failed else ""
        text = f"  ○ {batch_name(batch)}: {batch.done:,} of {batch.start.size:,} done{failed} in {event.seconds:.1f} s"
        return [Line(f"{text}, {tokens(batch.usage)}", "red" if event.failed else "dim")]

    def _run_end(self, event: RunEnd) -> list[Line]:
        style = "bold green" if event.stop == "answered" else "bold yellow"
        lines = [Line(f"● {event.stop}: {self.short(event.response) or '(no answer)'}", style)]
        if event.error:
            lines.append(Line(f"  {self.short(event.error)}", "red"))
        if event.depth == 0:
            usage = Usage() if self._runs.root is None else self._runs.root.usage
            lines.append(Line(f"  {event.seconds:.1f} s, {tokens(usage)}", "dim"))
        return lines

    def _batch(self, event: Subcall | BatchEnd) -> BatchNode | None:
        run = self._runs.runs.get(event.run)
        return None if run is None else run.batches.get(event.batch)


def tokens(usage: Usage) -> str:
    """Input and output tokens, and USD if the cost is known."""
    text = f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens"
    return text if usage.cost is None else f"{text}, {usage.cost:.4f} USD"
