"""Tells the listeners of a run what happens in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlm.types import Usage

if TYPE_CHECKING:
    from rlm.clients.base import ModelReply
    from rlm.events import Event
    from rlm.logger.run_nodes import EndedCall
    from rlm.logger.run_tree import RunTree

_log = logging.getLogger(__name__)


class Emitter:
    """Sends the events of one run to its listeners.

    Args:
        listeners: called with each event, in order. An exception of a listener is logged and changes nothing in the run.
        record: the run's record, for `completion.iterations`. It gets the same events; see `listened` for what they hold.
        run: id of the run.
        parent: id of the run above; None for the root.
        depth: depth of the run; 0 for the root.
    """

    def __init__(
        self,
        listeners: Sequence[Callable[[Event], None]],
        run: str,
        parent: str | None,
        depth: int,
        record: RunTree | None = None,
    ) -> None:
        self._record = record
        self._listeners = [*listeners] if record is None else [record.take, *listeners]
        self._head: dict[str, Any] = {"run": run, "parent": parent, "depth": depth}
        self.active = bool(self._listeners)
        """Whether there is a listener or a record. Otherwise no event is made."""
        self.listened = bool(listeners)
        """Whether there are listeners. Otherwise events have no hash, request key and window size, and queries go to the
        record by `record_batch` and `record_call`."""
        if self.active:
            from rlm.events import EVENTS  # imported on first use: making the classes takes milliseconds

            self._kinds = EVENTS

    def emit(self, kind: str, /, **data: Any) -> None:
        """Sends one event.

        Args:
            kind: the type of the event: a key of `rlm.events.EVENTS`.
            data: the fields of the event, without those that all events have.
        """
        if not self.active:
            return
        event = self._kinds[kind](time=time.time(), **self._head, **data)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("an event of run %s was lost", self._head["run"])

    def record_batch(self, batch: str) -> None:
        """Records that a query begins in a run without listeners.

        Args:
            batch: its id.
        """
        if self._record is not None:
            self._record.take_batch(self._head["run"], batch)

    def record_call(self, batch: str, call: EndedCall) -> None:
        """Records a sub-call of a run without listeners. An event would double the engine's time for it.

        Args:
            batch: id of its query.
            call: the sub-call, which has ended.
        """
        if self._record is not None:
            self._record.take_call(batch, call)


def outcome_fields(reply: ModelReply | None, error: Exception | None) -> dict[str, Any]:
    """The fields of `rlm.events.ModelCall` for the result of a model call.

    Args:
        reply: the reply; None if there was none.
        error: the error of the call; None if it succeeded.
    """
    fields: dict[str, Any] = {"message": None, "usage": Usage()}
    if reply is not None:
        fields = {
            "message": reply.message,
            "refusal": reply.refusal,
            "finish_reason": reply.finish_reason,
            "usage": reply.usage,
            "retries": reply.retries,
        }
    if error is not None:
        fields |= {"error": str(error), "error_type": type(error).__name__}
    return fields
