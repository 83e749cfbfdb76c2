"""The caller's functions that are told how a run goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions of the caller, called on the event loop of the run: they should be quick. What one raises is logged, and
    changes nothing, be it SystemExit; only Ctrl-C in the main thread goes on."""

    on_subcall_start: Callable[[int, str, str], object] | None = None
    """depth of who answers, model, begin of the prompt."""
    on_subcall_complete: Callable[[int, str, float, str | None], object] | None = None
    """depth of who answered, model, seconds, error or None."""
    on_iteration_start: Callable[[int, int], object] | None = None
    """depth of the run, turn (from 1)."""
    on_iteration_complete: Callable[[int, int, float], object] | None = None
    """depth of the run, turn, seconds."""

    def subcall_start(self, depth: int, model: str, head: str) -> None:
        _call(self.on_subcall_start, depth, model, head)

    def subcall_complete(self, depth: int, model: str, seconds: float, error: str | None) -> None:
        _call(self.on_subcall_complete, depth, model, seconds, error)

    def iteration_start(self, depth: int, turn: int) -> None:
        _call(self.on_iteration_start, depth, turn)

    def iteration_complete(self, depth: int, turn: int, seconds: float) -> None:
        _call(self.on_iteration_complete, depth, turn, seconds)


def _call(function: Callable[..., object] | None, *arguments: Any) -> None:
    if function is None:
        return
    try:
        function(*arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        _log.exception("a callback failed")
