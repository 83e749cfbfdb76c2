"""The progress of a map on stderr: a bar on a terminal, a line every 10 s elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlm.console.screen import screen

if TYPE_CHECKING:
    from rlm.types import MapProgress

_BETWEEN_LINES = 10.0
"""Seconds between two lines, where there is no terminal."""


class Bar:
    """Shows the progress of a map while the `with` block runs. Runs and other maps may be shown beside it."""

    def __init__(self) -> None:
        found = screen()
        self._screen = found if found.console.is_terminal and not found.console.is_dumb_terminal else None
        self._started = self._said = time.monotonic()
        self._progress: MapProgress | None = None

    def show(self, progress: MapProgress) -> None:
        """Shows the newest counts."""
        self._progress = progress
        if self._screen is None and time.monotonic() - self._said >= _BETWEEN_LINES:
            self._say()

    def __enter__(self) -> Self:
        if self._screen is not None:
            self._screen.put(self, self._draw)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._screen is not None:
            self._screen.remove(self)
        self._say()

    def _text(self) -> str:
        progress = self._progress
        if progress is None:
            return ""
        total = "" if progress.total is None else f" of {progress.total:,}"
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        cost = "" if progress.cost is None else f", {progress.cost:.4f} USD"
        return f"{progress.done:,}{total} done{failed} in {time.monotonic() - self._started:.0f} s{cost}"

    def _say(self) -> None:
        self._said = time.monotonic()
        print(f"map: {self._text()}", file=sys.stderr, flush=True)

    def _draw(self) -> RenderableType:
        progress = self._progress
        if progress is None:
            return Text("")
        row = Table.grid(padding=(0, 1))
        done = progress.done + progress.failed
        row.add_row("map", ProgressBar(progress.total, done, width=30), self._text())
        return row
