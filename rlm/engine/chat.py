"""What a run and its model say to each other."""

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
    from rlm.engine.call_tree import Tree


class Dialogue:
    """Asks the model of a run, and keeps the history, which it shortens if it is to."""

    def __init__(
        self, tree: Tree, model: Model, history: History, stats: RunStats, emitter: Emitter, *, root: bool
    ) -> None:
        """
        Args:
            stats: of the run; its counts of the model's calls are kept here.
            root: the usage is the root's.
        """
        self._ledger = tree.ledger
        self._stats = stats
        self._emitter = emitter
        self._root = root
        threshold = tree.settings.compaction
        self._compactor = None if threshold is None else Compactor(threshold)
        self._counted = UNCOUNTED
        self._replies = 0  # since the history began, or began anew
        self.model = model
        self.history = history
        self.turn = 0
        """The one that runs, counted from 1."""

    async def ask(self, purpose: str = "turn") -> ModelReply:
        """The model's next reply, added to the history.

        A limit that this very reply crosses does not throw it away: it is paid for, and may hold the answer.

        Raises:
            RLMError: the call failed for good, or a limit was reached.
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
        """Shortens the history, if it grows towards the end of the window. The whole of it becomes the last item of
        `history` in the REPL.

        Args:
            earlier: the items before it.

        Raises:
            RLMError: a limit was reached, or the REPL is gone.
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
            reply = None  # the request itself may no longer fit; the run can go on without notes
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
            # Its traceback has this frame: what the run holds would stay until a garbage collection.
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
