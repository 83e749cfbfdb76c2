"""Answers the queries of the code: plain calls of sub-models, and child runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlm.clients.base import ModelReply
from rlm.context import Context
from rlm.engine.emitter import outcome_fields
from rlm.engine.models import Model
from rlm.engine.query_prompts import as_messages
from rlm.engine.request_keys import call_place, request_key
from rlm.errors import (
    LimitError,
    ModelError,
    ModelNotFoundError,
    RLMError,
    RolloutStoppedError,
)
from rlm.repl.interface import Query, QueryReply
from rlm.types import Usage, text_of

if TYPE_CHECKING:
    from rlm.engine.call_tree import CallTree, Outcome
    from rlm.engine.emitter import Emitter

RunChild = Callable[["Model", "Context", str], Awaitable["Outcome"]]
"""Runs a model over a context. The str is the id of the sub-call that the run answers."""

_EXCERPT = 200
"""Characters of a prompt that events and callbacks get."""
_NO_USAGE = Usage()


@dataclass(slots=True)
class _Batch:
    """One query of the code."""

    id: str
    number: int
    """Number of the query in its run, from 0."""
    kind: str
    model: Model | None
    """None: the run has no model of that name."""
    name: str
    """The code's name for the model."""
    children: bool
    """Whether the prompts become child runs."""
    slots: asyncio.Semaphore
    most: int
    """Number of slots."""
    answered: int = 0


@dataclass(slots=True)
class _Item:
    """One prompt of a query. When it has ended it is a `rlm.logger.run_nodes.EndedCall`."""

    kind: str
    model: str
    """The code's name for the model."""
    call: str
    """Id of the child run's sub-call; empty for a plain call, whose id is made for its event."""
    begun: bool = False
    """Whether `on_subcall_start` has been called."""
    prompt_chars: int = 0
    prompt_head: str = ""
    request: str | None = None
    """Key of the request; None for a child run, and without listeners."""
    response: str = ""
    reply: ModelReply | None = None
    failure: RLMError | None = None
    usage: Usage = _NO_USAGE
    error: str | None = None
    seconds: float = 0.0


class Subcalls:
    """Answers the queries of one run. Each run has its own bound on child runs: with one bound for the tree, waiting parents
    could hold all slots. Plain calls have one bound for the tree."""

    def __init__(self, tree: CallTree, depth: int, emitter: Emitter, run_child: RunChild) -> None:
        """
        Args:
            depth: depth of the sub-calls; 1 below the root.
            emitter: tells the listeners of the run.
            run_child: starts a child run and waits for its end. It must not refer to this run: a REPL may keep this object
                after the run, and would keep the run's input in memory.
        """
        self._tree = tree
        self._depth = depth
        self._emitter = emitter
        self._run_child = run_child
        self._children = asyncio.Semaphore(tree.settings.max_concurrent_subcalls)
        self._batches = 0

    async def answer(self, query: Query) -> Sequence[QueryReply]:
        """Answers one query of the code. A prompt that fails does not affect the others."""
        tree = self._tree
        model = tree.models.named(query.model, self._depth)
        children = query.kind == "rlm" and self._depth < tree.settings.max_depth
        settings = tree.settings
        slots = self._children if children else tree.queries
        most = settings.max_concurrent_subcalls if children else settings.max_concurrent_queries
        name = str(query.model)[:_EXCERPT] if model is None else model.name
        batch = _Batch(_id(), self._batches, query.kind, model, name, children, slots, most)
        self._batches += 1
        started = time.perf_counter()
        if self._emitter.listened:
            self._emitter.emit(
                "batch_start",
                batch=batch.id,
                kind=query.kind,
                model=name,
                size=len(query.prompts),
                children=children,
            )
        else:
            self._emitter.record_batch(batch.id)
        try:
            async with tree.ledger.guard():
                if len(query.prompts) == 1:
                    return [await self._answer_one(batch, 0, query.prompts[0])]
                return await self._answer_all(batch, query.prompts)
        except RLMError as error:
            # The run is over: the cell that asked is being stopped too.
            return [_failure(f"the run is over: {error}")] * len(query.prompts)
        finally:
            seconds = time.perf_counter() - started
            failed = len(query.prompts) - batch.answered
            tree.ledger.subcall_failures += failed
            if self._emitter.listened:
                self._emitter.emit("batch_end", batch=batch.id, failed=failed, seconds=seconds)

    async def _answer_all(self, batch: _Batch, prompts: Sequence[Any]) -> list[QueryReply]:
        """Answers the prompts of a batch, several at once. Each task takes one prompt after the other. Tasks start in waves of
        1, 2, 4, ...: if the models answer immediately, few tasks are needed."""
        replies: dict[int, QueryReply] = {}
        todo = deque(enumerate(prompts))

        async def work() -> None:
            while todo:
                index, prompt = todo.popleft()
                replies[index] = await self._answer_one(batch, index, prompt)

        missing, wave = min(len(prompts), batch.most), 1
        async with asyncio.TaskGroup() as group:
            while missing and todo:
                wave = min(wave, missing)
                for _ in range(wave):
                    group.create_task(work())
                missing, wave = missing - wave, 2 * wave
                await asyncio.sleep(0)
        return [replies[index] for index in range(len(prompts))]

    async def _answer_one(self, batch: _Batch, index: int, prompt: Any) -> QueryReply:
        async with batch.slots:
            ledger, callbacks = self._tree.ledger, self._tree.settings.callbacks
            item = _Item(batch.kind, batch.name, _id() if batch.children else "")
            started = time.perf_counter()
            place = call_place.set((*call_place.get(), batch.number, index))
            try:
                model = self._admit(batch)
                ask = self._child_run if batch.children else self._plain_call
                item.response = await ask(batch, model, prompt, item)
                batch.answered += 1
                return QueryReply(item.response)
            except RLMError as error:
                item.failure, item.error = error, str(error)
                if isinstance(error, RolloutStoppedError):
                    # No later call can succeed, so this error ends the run.
                    ledger.trip(error)
                return _failure(item.error)
            finally:
                call_place.reset(place)
                item.seconds = time.perf_counter() - started
                if not item.begun:
                    text = prompt if isinstance(prompt, str) else ""
                    self._begin(item, len(text), text)
                callbacks.subcall_complete(self._depth, item.model, item.seconds, item.error)
                if self._emitter.listened:
                    self._emit(batch, index, item)
                else:
                    self._emitter.record_call(batch.id, item)

    def _admit(self, batch: _Batch) -> Model:
        """Counts a sub-call and returns the model that answers it.

        Raises:
            RLMError: there is no such model, or a limit has been reached.
        """
        ledger, models = self._tree.ledger, self._tree.models
        if batch.model is None:
            known = ", ".join(models.names)
            raise ModelNotFoundError(f"there is no model named {batch.name!r} in this run; it has: {known}")
        if not ledger.count_subcall():
            raise LimitError("the run's max_subcalls are used up: answer with what you have")
        ledger.check()
        return batch.model

    def _begin(self, item: _Item, size: int, head: str) -> None:
        item.begun = True
        item.prompt_chars, item.prompt_head = size, head[:_EXCERPT]
        callbacks = self._tree.settings.callbacks
        callbacks.subcall_start(self._depth, item.model, item.prompt_head)

    async def _plain_call(self, batch: _Batch, model: Model, prompt: Any, item: _Item) -> str:
        messages = as_messages(prompt)
        texts = [text_of(message["content"]) for message in messages]
        self._begin(item, sum(map(len, texts)), texts[-1])
        if self._emitter.listened:
            item.request = request_key(model.client.model, messages, model.sampling)
        reply = item.reply = await model.ask(messages, self._tree.ledger, root=False)
        item.usage = reply.usage
        if not reply.content:
            raise ModelError(_why_empty(reply.finish_reason, reply.refusal))
        return reply.content

    async def _child_run(self, batch: _Batch, model: Model, prompt: Any, item: _Item) -> str:
        context = await Context.made(prompt)
        with contextlib.closing(context):
            self._begin(item, context.size, prompt if isinstance(prompt, str) else context.kind)
            outcome = await self._run_child(model, context, item.call)
        if isinstance(outcome.error, RolloutStoppedError):
            raise outcome.error
        if not outcome.response:
            raise ModelError(f"the child run ended without an answer: {outcome.error or outcome.stop}")
        return outcome.response

    def _emit(self, batch: _Batch, index: int, item: _Item) -> None:
        self._emitter.emit(
            "subcall",
            batch=batch.id,
            index=index,
            call=item.call or f"{batch.id}.{index}",
            kind=item.kind,
            model=item.model,
            request=item.request,
            prompt_chars=item.prompt_chars,
            prompt_head=item.prompt_head,
            response=item.response,
            seconds=item.seconds,
            **outcome_fields(item.reply, item.failure),
        )


def _failure(problem: str) -> QueryReply:
    return QueryReply(f"Error: {problem}", failed=True)


def _id() -> str:
    return os.urandom(6).hex()


def _why_empty(finish_reason: str | None, refusal: str | None) -> str:
    if refusal:
        return f"the model refused: {refusal}"
    if finish_reason == "length":
        return (
            "the model used up its token limit before it wrote anything: ask for less, or give a shorter text"
        )
    return f"the model's reply was empty (finish reason: {finish_reason})"
