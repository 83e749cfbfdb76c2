"""Shows a run on stderr, for `verbose=True`.

On a terminal, one or several lines for each event scroll by. Below them is a tree of the running runs: their turns, batches
with a bar, child runs, tokens, USD and time so far. Elsewhere (a pipe, a file, a notebook) there are only lines. Each line
begins with the first characters of its run's id.
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
from rlm.console.live_state import batch_name, doing, seconds, turn_line
from rlm.console.screen import Screen, screen
from rlm.events import Event, RunEnd, RunStart
from rlm.logger.run_nodes import BatchNode, RunNode
from rlm.logger.run_tree import RunTree

_log = logging.getLogger(__name__)

_MOST_TURNS = 5
"""Finished turns of one run that the tree shows."""
_MOST_CHILDREN = 8
"""Child runs of one run that the tree shows."""

_plain_lock = threading.Lock()
"""Held while lines are written to a stream: lines of several runs do not mix."""


class Console:
    """Shows one completion. Several completions may be shown at once, from several threads. An error while showing is logged
    once, ends the showing and does not reach the run."""

    def __init__(self, to: Screen | TextIO | None = None) -> None:
        """
        Args:
            to: a `Screen`, or a stream for lines. None: stderr, as a screen if it is a terminal that can move its cursor.
        """
        if to is None:
            found = screen()
            usable = found.console.is_terminal and not found.console.is_dumb_terminal
            to = found if usable else sys.stderr
        self._to = to
        self._runs = RunTree(whole=False)
        self._writer = Writer(self._runs, Redactor())
        self._names: dict[str, str] = {}
        self._lock = threading.RLock()
        self._given_up = False

    def show(self, event: Event) -> None:
        """Shows one event of the completion."""
        if self._given_up:
            return
        try:
            with self._lock:
                lines = self._writer.lines(event)
                self._runs.take(event)
            if isinstance(self._to, Screen):
                self._draw(event, lines, self._to)
            else:
                self._write(event, lines, self._to)
        except Exception as error:
            self._given_up = True
            if isinstance(self._to, Screen):
                self._to.remove(self)
            _log.warning("the run is no longer shown: %s: %s", type(error).__name__, error)

    def _write(self, event: Event, lines: list[Line], stream: TextIO) -> None:
        if isinstance(event, RunStart):
            above = f"{event.parent[:4]}/" if event.parent is not None else ""
            self._names[event.run] = f"{above}{event.run[:4]}"
        if not lines:
            return
        head = f"{self._names.get(event.run, event.run[:4])} {'  ' * event.depth}"
        text = "".join(f"{head}{line.text}\n" for line in lines)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        with _plain_lock:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()

    def _draw(self, event: Event, lines: list[Line], to: Screen) -> None:
        if event.depth == 0:  # child runs are shown in the tree alone
            head = f"{event.run[:4]} " if to.crowded else ""
            if lines:
                to.print(*(Text(f"{head}{line.text}", style=line.style) for line in lines))
            if isinstance(event, RunStart):
                to.put(self, self._tree)
            elif isinstance(event, RunEnd):
                to.remove(self)

    def _tree(self) -> RenderableType:
        with self._lock:
            root = self._runs.root
            if root is None:
                return Text("")
            usage = f"{seconds(root):.0f} s, {tokens(root.usage)}"
            label = Text.assemble((f"▶ {self._writer.short(root.start.model)}  ", "bold"), (usage, "dim"))
            label.no_wrap, label.overflow = True, "ellipsis"
            tree = Tree(label, guide_style="dim")
            self._branches(tree, root)
            return tree

    def _branches(self, tree: Tree, run: RunNode) -> None:
        finished = [turn for turn in run.turns if turn.end is not None]
        for turn in finished[-_MOST_TURNS:]:
            tree.add(Text(turn_line(turn), style="dim"))
        action, since = doing(run)
        number = f"turn {run.turns[-1].number}/{run.start.max_iterations}: " if run.turns else ""
        now = tree.add(Text(f"{number}{action}, {max(0.0, time.time() - since):.0f} s"))
        for batch in run.batches.values():
            now.add(_bar(batch))
        children = [child for child in run.children.values() if child.end is None]
        for child in children[:_MOST_CHILDREN]:
            below = now.add(
                Text(f"▶ {self._writer.short(child.start.model)}  {child.start.run[:4]}", style="bold")
            )
            self._branches(below, child)
        if len(children) > _MOST_CHILDREN:
            now.add(Text(f"and {len(children) - _MOST_CHILDREN} more child runs", style="dim"))


def _bar(batch: BatchNode) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    failed = Text(f"{batch.failed:,} failed", style="red") if batch.failed else Text("")
    count = f"{batch.done:,}/{batch.start.size:,}"
    row.add_row(batch_name(batch), ProgressBar(batch.start.size, batch.done, width=30), count, failed)
    return row
