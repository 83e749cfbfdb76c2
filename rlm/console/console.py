"""The console view of a run, for `verbose=True`.

On a terminal, what happened scrolls by, and below it is a tree of what runs now: the runs, their turns, batches with a bar,
child runs, tokens, USD and time so far. Elsewhere (a pipe, a file, a notebook) there are plain lines, each with the
beginning of its run's id. Both go to stderr.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TextIO

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rlm._redaction import Redactor
from rlm.console.event_lines import Line, Writer, tokens
from rlm.console.live_state import BatchState, RunState, TreeState
from rlm.console.screen import Screen, screen
from rlm.events import Event, RunEnd, RunStart

_log = logging.getLogger(__name__)

_MOST_TURNS = 5
_MOST_CHILDREN = 8
_plain_lock = threading.Lock()


class Console:
    """Shows one completion. Any number of them may be shown at once, in any threads. Nothing that goes wrong here reaches the
    run; it is said once."""

    def __init__(self, to: Screen | TextIO | None = None) -> None:
        """
        Args:
            to: a `Screen`, or a stream for plain lines. None: stderr, as a screen if it is a terminal.
        """
        if to is None:
            found = screen()
            usable = found.console.is_terminal and not found.console.is_dumb_terminal
            to = found if usable else sys.stderr
        self._to = to
        self._state = TreeState()
        self._writer = Writer(self._state, Redactor())
        self._names: dict[str, str] = {}
        self._lock = threading.RLock()
        self._given_up = False

    def show(self, event: Event) -> None:
        """Takes an event of the completion, or of a run below it."""
        if self._given_up:
            return
        try:
            with self._lock:
                lines = self._writer.lines(event)
                self._state.take(event)
            if isinstance(self._to, Screen):
                self._draw(event, lines, self._to)
            else:
                self._write(event, lines, self._to)
        except Exception as error:
            self._given_up = True
            if isinstance(self._to, Screen):
                self._to.remove(self)
            _log.warning("the run is shown no longer: %s: %s", type(error).__name__, error)

    def _write(self, event: Event, lines: list[Line], stream: TextIO) -> None:
        if isinstance(event, RunStart):
            above = f"{event.parent[:4]}/" if event.parent is not None else ""
            self._names[event.run] = f"{above}{event.run[:4]}"
        if not lines:
            return
        head = f"{self._names.get(event.run, event.run[:4])} {'  ' * event.depth}"
        text = "".join(f"{head}{line.text}\n" for line in lines)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with _plain_lock:  # lines of several runs, whole
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()

    def _draw(self, event: Event, lines: list[Line], to: Screen) -> None:
        if event.depth == 0:  # of child runs the tree has enough
            head = f"{event.run[:4]} " if to.crowded else ""
            if lines:
                to.print(*(Text(f"{head}{line.text}", style=line.style) for line in lines))
            if isinstance(event, RunStart):
                to.put(self, self._tree)
            elif isinstance(event, RunEnd):
                to.remove(self)

    def _tree(self) -> RenderableType:
        with self._lock:
            root = self._state.root
            if root is None:
                return Text("")
            usage = f"{self._state.seconds():.0f} s, {tokens(self._state.usage)}"
            label = Text.assemble((f"▶ {self._writer.short(root.start.model)}  ", "bold"), (usage, "dim"))
            label.no_wrap, label.overflow = True, "ellipsis"
            tree = Tree(label, guide_style="dim")
            self._branches(tree, root)
            return tree

    def _branches(self, tree: Tree, run: RunState) -> None:
        for text in run.turns[-_MOST_TURNS:]:
            tree.add(Text(text, style="dim"))
        seconds = max(0.0, time.time() - run.since)
        turn = f"turn {run.turn}/{run.start.max_iterations}: " if run.turn else ""
        now = tree.add(Text(f"{turn}{run.doing}, {seconds:.0f} s"))
        for batch in run.batches.values():
            now.add(_bar(batch))
        children = list(run.children.values())
        for child in children[:_MOST_CHILDREN]:
            below = now.add(
                Text(f"▶ {self._writer.short(child.start.model)}  {child.start.run[:4]}", style="bold")
            )
            self._branches(below, child)
        if len(children) > _MOST_CHILDREN:
            now.add(Text(f"and {len(children) - _MOST_CHILDREN} more child runs", style="dim"))


def _bar(batch: BatchState) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    failed = Text(f"{batch.failed:,} failed", style="red") if batch.failed else Text("")
    count = f"{batch.done:,}/{batch.start.size:,}"
    row.add_row(batch.name, ProgressBar(batch.start.size, batch.done, width=30), count, failed)
    return row
