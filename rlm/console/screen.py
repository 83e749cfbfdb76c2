"""The changing part at the bottom of the terminal. There is one in a process; runs and maps share it."""

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
"""Seconds between two drawings."""


class Terminal(Console):
    """A console of rich that raises an error when the terminal is closed. Rich's own console ends the program then."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("the terminal is closed")


class Screen:
    """Draws the changing parts, below the lines that scroll by. A thread of its own draws them, so a run never waits for the
    terminal. When the terminal fails, drawing ends."""

    def __init__(self, console: Terminal) -> None:
        self.console = console
        self._lock = threading.RLock()
        self._parts: dict[Hashable, Callable[[], RenderableType]] = {}
        self._live: Live | None = None
        self._stop = threading.Event()
        self._pid = os.getpid()

    @property
    def crowded(self) -> bool:
        """Whether several parts are shown."""
        return len(self._parts) > 1

    def put(self, key: Hashable, part: Callable[[], RenderableType]) -> None:
        """Shows a part until `remove`.

        Args:
            key: name of the part.
            part: returns what is drawn. It is called for each drawing, in any thread.
        """
        with self._lock:
            self._parts[key] = part
            if self._live is None:
                self._start()

    def remove(self, key: Hashable) -> None:
        """Removes a part; a part that is not shown is ignored."""
        with self._lock:
            self._parts.pop(key, None)
            if not self._parts:
                self._finish()

    def print(self, *lines: RenderableType) -> None:
        """Prints lines above the changing parts."""
        with self._lock:
            self.console.print(Group(*lines), soft_wrap=True)

    def close(self) -> None:
        """Removes all parts and shows the terminal's cursor again. Does nothing in a forked process."""
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
            # What the program prints to the same terminal goes above the changing parts.
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
                except Exception:  # the terminal is gone; the run continues
                    self._parts.clear()
                    self._finish()
                    return

    def _draw(self) -> RenderableType:
        # No lock here: rich also draws when another thread prints, and that thread holds locks of rich.
        return Group(*(part() for part in list(self._parts.values())))


_screens: dict[int, Screen] = {}
"""By process id."""


def screen() -> Screen:
    """Returns the screen of this process, on stderr."""
    pid = os.getpid()
    if pid not in _screens:  # in a fork, the parent's screen has no drawing thread
        made = _screens.setdefault(pid, Screen(Terminal(stderr=True)))
        atexit.register(made.close)
    return _screens[pid]
