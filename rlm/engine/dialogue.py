"""The dialogue of a run with its model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlm.clients.base import ModelReply
from rlm.engine.compaction import Compactor
from rlm.engine.emitter import Emitter, outcome_fields
from rlm.engine.history import History
from rlm.engine.model_window import UNCOUNTED, Counted
from rlm.engine.models import Model
from rlm.engine.request_keys import request_key
from rlm.errors import ModelError, RLMError
from rlm.repl.interface import REPL
from rlm.types import Message, RunStats

if TYPE_CHECKING:
    from rlm.engine.call_tree import CallTree


class Dialogue:
    """Calls the model of a run, keeps the history of messages, and compacts it."""

    def __init__(
        self, tree: CallTree, model: Model, history: History, stats: RunStats, emitter: Emitter, *, root: bool
    ) -> None:
        """
        Args:
            stats: the counts of model calls are kept here.
            root: whether this is the root's run.
        """
        self._ledger = tree.ledger
        self._stats = stats
        self._emitter = emitter
        self._root = root
        threshold = tree.settings.compaction
        self._compactor = None if threshold is None else Compactor(threshold)
        self._counted = UNCOUNTED
        self._replies = 0
        """Replies since the history began or was compacted."""
        self.model = model
        self.history = history
        self.turn = 0
        """The number of the current turn, from 1."""

    async def ask(self, purpose: str = "turn") -> ModelReply:
        """Asks for the next reply and adds it to the history. A reply that crosses a limit is returned too: it is paid for, and
        may hold the answer.

        Raises:
            RLMError: the call failed for good, or a limit had been reached before.
        """
        messages = self.history.messages
        reply = await self._call(messages, purpose)
        if reply.usage.input_tokens > 0:
            self._counted = Counted(len(messages), reply.usage.input_tokens)
        if reply.finish_reason == "length":
            self._stats.truncated += 1
        self.history.add_reply(reply.message)
        self._replies += 1
        return reply

    async def compact(self, repl: REPL, earlier: Sequence[list[Message]]) -> None:
        """Compacts the history if it nears the end of the window. The full history becomes the last item of `history` in the
        REPL.

        Args:
            earlier: the items of `history` before it.

        Raises:
            RLMError: a limit was reached, or the REPL has ended.
        """
        if self._compactor is None:
            return
        history, window = self.history, self.model.window
        before = window.guess(history.messages, self._counted)
        size = await window.size()
        if not self._compactor.is_due(before, size, self._replies):
            return
        started = time.perf_counter()
        try:
            reply = await self._call(Compactor.request(history), "compaction")
        except ModelError:
            self._ledger.check()
            reply = None  # the request for notes may not fit either: the run continues without notes
        await repl.extend([], [*earlier, history.full])
        history.compact(Compactor.notes(history, reply))
        self._counted = UNCOUNTED
        after = window.guess(history.messages)
        self._compactor.settle(after, size)
        self._replies = 0
        self._stats.compactions += 1
        self._emitter.emit(
            "compaction",
            turn=self.turn,
            tokens_before=before,
            tokens_after=after,
            summary="" if reply is None else reply.content,
            seconds=time.perf_counter() - started,
        )

    async def _call(self, messages: list[Message], purpose: str) -> ModelReply:
        started = time.perf_counter()
        reply: ModelReply | None = None
        failure: RLMError | None = None
        try:
            async with self._ledger.guard():
                reply = await self.model.ask(messages, self._ledger, root=self._root, counted=self._counted)
            return reply
        except RLMError as error:
            failure = error
            raise
        finally:
            seconds = time.perf_counter() - started
            self._stats.model_seconds += seconds
            if self._emitter.active:
                self._emit(messages, purpose, reply, failure, seconds)
            # Its traceback refers to this frame: everything that the run holds would stay until a garbage collection.
            del failure

    def _emit(
        self,
        messages: list[Message],
        purpose: str,
        reply: ModelReply | None,
        failure: RLMError | None,
        seconds: float,
    ) -> None:
        model = self.model
        self._emitter.emit(
            "reply",
            turn=self.turn,
            purpose=purpose,
            model=model.name,
            request=request_key(model.client.model, messages, model.sampling)
            if self._emitter.listened
            else "",
            content="" if reply is None else reply.content,
            reasoning=None if reply is None else reply.reasoning,
            seconds=seconds,
            **outcome_fields(reply, failure),
        )
