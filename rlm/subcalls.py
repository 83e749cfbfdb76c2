"""Answers what the code asks: plain calls of sub-models, batches of them, and child runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from rlm.context import Context
from rlm.environments.base import Query, QueryReply
from rlm.errors import ContextError, ModelError, RLMError, RolloutStoppedError
from rlm.models import Model
from rlm.types import Message, SubcallRecord, text_of

if TYPE_CHECKING:
    from rlm.rollout import Rollout
    from rlm.tree import Tree

_ROLES = ("system", "user", "assistant")
_EXCERPT = 200


class Subcalls:
    """The queries of one run. `max_concurrent_subcalls` bounds the items that are in flight for it at once; a child
    run has a bound of its own, so that a parent that waits cannot starve it."""

    def __init__(self, tree: Tree, parent: Rollout) -> None:
        self._tree = tree
        self._parent = parent
        self._slots = asyncio.Semaphore(tree.settings.max_concurrent_subcalls)
        self._records: list[SubcallRecord] = []

    def take_records(self) -> list[SubcallRecord]:
        """The sub-calls since the last take, in the order in which they ended."""
        records, self._records = self._records, []
        return records

    async def answer(self, query: Query) -> Sequence[QueryReply]:
        """Answers one query of the code; each item fails alone."""
        model = self._tree.models.named(query.model)
        if model is None:
            known = ", ".join(self._tree.models.names)
            problem = f"there is no model named {query.model!r} in this run; it has: {known}"
            return [self._failure(problem) for _ in query.prompts]
        child = query.kind == "rlm" and self._parent.depth + 1 < self._tree.settings.max_depth
        ask = self._child_run if child else self._plain_call
        try:
            async with self._tree.ledger.guard():
                return await asyncio.gather(
                    *(self._item(ask, query.kind, model, prompt) for prompt in query.prompts)
                )
        except RLMError as error:
            # The run is over. The cell that asked is being stopped, and learns of it besides.
            return [self._failure(f"the run is over: {error}") for _ in query.prompts]

    async def _item(
        self,
        ask: Callable[[Model, Any, SubcallRecord], Awaitable[str]],
        kind: str,
        model: Model,
        prompt: Any,
    ) -> QueryReply:
        async with self._slots:
            self._tree.ledger.subcalls += 1
            record = SubcallRecord(kind, model.name)
            started = time.perf_counter()
            try:
                self._tree.ledger.check()
                record.response = await ask(model, prompt, record)
                return QueryReply(record.response)
            except RLMError as error:
                record.error = str(error)
                if isinstance(error, RolloutStoppedError):
                    # No later call can succeed, so this is the end of the run and not one failed item.
                    self._tree.ledger.trip(error)
                return self._failure(str(error))
            finally:
                record.seconds = time.perf_counter() - started
                self._records.append(record)
                if self._parent.observed:
                    self._parent.emit("subcall", **asdict(record))

    async def _plain_call(self, model: Model, prompt: Any, record: SubcallRecord) -> str:
        messages = _as_messages(prompt)
        record.prompt_chars = sum(len(text_of(message["content"])) for message in messages)
        record.prompt_head = text_of(messages[-1]["content"])[:_EXCERPT]
        reply = await model.ask(messages, self._tree.ledger, root=False)
        record.input_tokens = reply.usage.input_tokens
        record.output_tokens = reply.usage.output_tokens
        if not reply.content:
            raise ModelError(_why_empty(reply.finish_reason, reply.refusal))
        return reply.content

    async def _child_run(self, model: Model, prompt: Any, record: SubcallRecord) -> str:
        context = Context.of(prompt)
        record.prompt_chars = context.size
        record.prompt_head = prompt[:_EXCERPT] if isinstance(prompt, str) else context.kind
        outcome = await self._parent.child(model, context).run()
        if isinstance(outcome.error, RolloutStoppedError):
            raise outcome.error
        if not outcome.response:
            raise ModelError(f"the child run ended without an answer: {outcome.error or outcome.stop}")
        return outcome.response

    def _failure(self, problem: str) -> QueryReply:
        self._tree.ledger.subcall_failures += 1
        return QueryReply(f"Error: {problem}", failed=True)


def _as_messages(prompt: Any) -> list[Message]:
    """A prompt as the code gave it: a str, or a list of messages with role and content."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt:
        for message in prompt:
            if (
                not isinstance(message, dict)
                or message.get("role") not in _ROLES
                or not isinstance(message.get("content"), str)
            ):
                break
        else:
            return [cast(Message, {"role": m["role"], "content": m["content"]}) for m in prompt]
    raise ContextError(
        f"a prompt must be a str, or a list of messages like {{'role': 'user', 'content': '...'}}; "
        f"this one is a {type(prompt).__name__}"
    )


def _why_empty(finish_reason: str | None, refusal: str | None) -> str:
    if refusal:
        return f"the model refused: {refusal}"
    if finish_reason == "length":
        return (
            "the model used up its token limit before it wrote anything: ask for less, or give a shorter text"
        )
    return f"the model's reply was empty (finish reason: {finish_reason})"
