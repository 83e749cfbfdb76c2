"""The console view of a run, for `verbose=True`."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

_MAX_LINES = 30


class Console:
    """Prints events to stderr as they happen: in colour on a terminal, plain when piped."""

    def __init__(self, console: RichConsole | None = None) -> None:
        self._console = console or RichConsole(stderr=True)

    def show(self, event: dict[str, Any]) -> None:
        """Prints one event."""
        show = getattr(self, f"_show_{event['type']}", None)
        if show is not None:
            show(event, "  " * event["depth"])

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _show_run_start(self, event: dict[str, Any], indent: str) -> None:
        context = event["context"]
        self._line(
            f"{indent}▶ {event['model']}  {event['question'] or '(the context is the request)'}", "bold"
        )
        self._line(f"{indent}  context: {context['kind']} of {context['size']:,}", "dim")

    def _show_reply(self, event: dict[str, Any], indent: str) -> None:
        usage = event["usage"]
        self._line(
            f"{indent}◆ reply in {event['seconds']:.1f} s, {usage['input_tokens']:,} + {usage['output_tokens']:,} tokens",
            "cyan",
        )
        self._line(_head(event["content"], indent))

    def _show_cell(self, event: dict[str, Any], indent: str) -> None:
        if self._console.is_terminal:
            self._console.print(Panel(Syntax(_head(event["code"], ""), "python"), border_style="dim"))
        style = "" if event["error"] is None else "red"
        title = f"{indent}■ cell {event['status']} in {event['seconds']:.2f} s"
        self._line(title, style or "green")
        output = "\n".join(part for part in (event["stdout"], event["stderr"]) if part)
        if output:
            self._line(_head(output, f"{indent}  "), style)

    def _show_subcall(self, event: dict[str, Any], indent: str) -> None:
        end = f"failed: {event['error']}" if event["error"] else f"{event['output_tokens']:,} tokens"
        self._line(
            f"{indent}  ○ {event['kind']}_query {event['prompt_chars']:,} characters in {event['seconds']:.1f} s: {end}",
            "red" if event["error"] else "dim",
        )

    def _show_run_end(self, event: dict[str, Any], indent: str) -> None:
        style = "bold green" if event["stop"] == "answered" else "bold yellow"
        self._line(f"{indent}● {event['stop']}: {_head(event['response'], '') or '(no answer)'}", style)
        if event["error"]:
            self._line(f"{indent}  {event['error']}", "red")


def _head(text: str, indent: str) -> str:
    lines = text.splitlines()
    shown = [f"{indent}{line}" for line in lines[:_MAX_LINES]]
    if len(lines) > _MAX_LINES:
        shown.append(f"{indent}... {len(lines) - _MAX_LINES} more lines")
    return "\n".join(shown)
