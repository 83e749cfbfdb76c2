"""How a run tells its listeners what happens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm.events import Event

_log = logging.getLogger(__name__)


class Emitter:
    """The listeners of one run.

    Args:
        listeners: are called with each event, in the order in which things happen. What one raises is logged: a full disk
            under the log or a closed terminal changes nothing in the run.
        run: the run's id.
        parent: the id of the run above, or None.
        depth: of the run.
    """

    def __init__(
        self, listeners: Sequence[Callable[[Event], None]], run: str, parent: str | None, depth: int
    ) -> None:
        self._listeners = listeners
        self._head: dict[str, Any] = {"run": run, "parent": parent, "depth": depth}
        self.active = bool(listeners)
        """Whether anybody listens. If not, an event need not be made."""

    def emit(self, kind: str, /, **data: Any) -> None:
        """Tells what happened.

        Args:
            kind: the type of the event: a key of `rlm.events.EVENTS`.
            data: the fields of the event, besides those that all have.
        """
        if not self.active:
            return
        from rlm.events import EVENTS  # its classes take a while to make, and most runs have no listener

        event = EVENTS[kind](time=time.time(), **self._head, **data)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("an event of run %s was lost", self._head["run"])
