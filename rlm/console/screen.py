"""The bottom of the terminal, where what runs is shown as it changes. One for the process: several runs share it."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable

from rich.console import Console, Group, RenderableType
from rich.live import Live

_REFRESH = 0.1
"""Seconds."""


class Terminal(Console):
    """A console that says when it is gone: rich's own ends the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("the terminal is closed")


class Screen:
    """Parts of the terminal that change, below what scrolls by. They are drawn by a thread of its own, so that nobody who
    has something to show waits for the terminal. A terminal that fails is given up."""

    def __init__(self, console: Terminal) -> None:
        self.console = console
        self._lock = threading.RLock()
        self._parts: dict[Hashable, Callable[[], RenderableType]] = {}
        self._live: Live | None = None
        self._stop = threading.Event()
        self._pid = os.getpid()

    @property
    def crowded(self) -> bool:
        """Whether there are several parts."""
        return len(self._parts) > 1

    def put(self, key: Hashable, part: Callable[[], RenderableType]) -> None:
        """Shows something until `remove`.

        Args:
            part: is called, in any thread, whenever it is drawn.
        """
        with self._lock:
            self._parts[key] = part
            if self._live is None:
                self._start()

    def remove(self, key: Hashable) -> None:
        """Shows it no longer."""
        with self._lock:
            self._parts.pop(key, None)
            if not self._parts:
                self._finish()

    def print(self, *lines: RenderableType) -> None:
        """Prints above of what changes."""
        with self._lock:
            self.console.print(Group(*lines), soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._pid == os.getpid():
            with self._lock:
                self._parts.clear()
                self._finish()

    def _start(self) -> None:
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            get_renderable=self._draw,
            # What the program prints meanwhile has to go above, if it goes to the same terminal.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._live.start()
        self._stop = threading.Event()
        threading.Thread(target=self._refresh, args=(self._live, self._stop), daemon=True).start()

    def _finish(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._stop.set()
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _refresh(self, live: Live, stop: threading.Event) -> None:
        while not stop.wait(_REFRESH):
            with self._lock:
                if stop.is_set():
                    return
                try:
                    live.refresh()
                except Exception:  # the terminal is gone; the run is not to hear of it
                    self._parts.clear()
                    self._finish()
                    return

    def _draw(self) -> RenderableType:
        # Without the lock: a thread that prints something of its own, and so has this drawn, may hold locks of rich.
        return Group(*(part() for part in list(self._parts.values())))


_screens: dict[int, Screen] = {}


def screen() -> Screen:
    """That of this process, on stderr."""
    pid = os.getpid()
    if pid not in _screens:  # a fork has the parent's, without its thread
        made = _screens.setdefault(pid, Screen(Terminal(stderr=True)))
        atexit.register(made.close)
    return _screens[pid]
