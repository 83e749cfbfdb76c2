"""The caller's functions that follow a run: `on_subcall_start` and the other callbacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions of the caller; `rlm.Options` has their arguments. They are called on the event loop of the run, so they should
    be quick. An exception of a callback, SystemExit included, is logged and changes nothing. Only a KeyboardInterrupt in the
    main thread is passed on."""

    on_subcall_start: Callable[[int, str, str], object] | None = None
    on_subcall_complete: Callable[[int, str, float, str | None], object] | None = None
    on_iteration_start: Callable[[int, int], object] | None = None
    on_iteration_complete: Callable[[int, int, float], object] | None = None

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
