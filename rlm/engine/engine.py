"""The engine of an `RLM`: runs each completion from its input to its result, and holds what all of them share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rlm.aio.notebooks import notebook_interrupts
from rlm.cancellation import CancelToken
from rlm.clients.base import Client
from rlm.context import Context
from rlm.engine.call_tree import CallTree, Outcome, stop_reason
from rlm.engine.ledger import Ledger
from rlm.engine.request_keys import fingerprint
from rlm.engine.setup import environment_of, models_of, settings_of
from rlm.errors import CancellationError, LimitError, RLMError, RolloutStoppedError
from rlm.options import Options
from rlm.repl.persistent import Conversation
from rlm.types import RLMChatCompletion, RunStats

if TYPE_CHECKING:
    from rlm.engine.answer_format import AnswerFormat
    from rlm.events import Event
    from rlm.logger.run_tree import RunTree

_HASHED_AT_ONCE = 1 << 16
"""Bytes of an input that is hashed on the event loop, in less time than a thread takes to start on it."""


class Engine:
    """Runs completions: any number at once, or one after the other if they share a persistent REPL.

    Raises:
        ConfigError: an option does not fit.
    """

    def __init__(self, options: Options) -> None:
        self._models = models_of(options)
        self._environment, repl = environment_of(options)
        self._settings = settings_of(options, repl)
        self._limits: dict[str, Any] = {
            "max_timeout": options.max_timeout,
            "max_tokens": options.max_tokens,
            "max_budget": options.max_budget,
            "max_subcalls": options.max_subcalls,
        }
        self.conversation = Conversation(self._environment) if options.persistent else None
        """The persistent REPL; None if each completion has its own."""

    async def run(
        self,
        prompt: Any,
        question: str | None,
        *,
        answer_format: AnswerFormat | None,
        cancel: CancelToken | None,
        listeners: Sequence[Callable[[Event], None]],
    ) -> tuple[RLMChatCompletion, RLMError | None]:
        """Runs one completion.

        Returns:
            The completion, and the error to raise in its place; None if there is a result.

        Raises:
            ContextError: the input cannot be sent to a REPL.
            asyncio.CancelledError: the caller was cancelled. Every process of the run has ended.
        """
        from rlm.logger.run_tree import RunTree  # imported on first use: saves import time

        record = RunTree()
        context = await Context.made(prompt)
        async with contextlib.AsyncExitStack() as stack:
            if context is not prompt and self.conversation is None:
                stack.callback(context.close)
            ledger = Ledger(**self._limits)
            stack.callback(ledger.stop)
            stack.enter_context(notebook_interrupts())
            if cancel is not None:
                stack.enter_context(cancel.calling(partial(_trip, asyncio.get_running_loop(), ledger)))
            refusal = await self._wait(stack, ledger)
            started = time.perf_counter()
            if refusal is None:
                outcome = await self._roll_out(context, question, answer_format, ledger, listeners, record)
            else:
                outcome = Outcome("", stop_reason(refusal), refusal, RunStats(), [])
            seconds = time.perf_counter() - started
            description = await _describe(context)
        completion = RLMChatCompletion(
            root_model=self._models.root.name,
            prompt=prompt,
            response=outcome.response,
            usage_summary=ledger.summary,
            execution_time=seconds,
            error=None if outcome.error is None else str(outcome.error),
            stop=outcome.stop,
            stats=outcome.stats,
            messages=outcome.messages,
            iterations=[] if record.root is None else record.root.iterations(),
            parsed=outcome.parsed,
            description=description,
        )
        return completion, None if _is_result(outcome) else outcome.error

    async def _wait(self, stack: contextlib.AsyncExitStack, ledger: Ledger) -> LimitError | None:
        """Waits until the persistent REPL is free, and holds it until the stack is left. Returns the error if the
        completion was ended before that."""
        if self.conversation is None:
            return None
        try:
            async with ledger.guard():
                await stack.enter_async_context(self.conversation.turn())
        except LimitError as error:
            return error
        return None

    async def _roll_out(
        self,
        context: Context,
        question: str | None,
        answer_format: AnswerFormat | None,
        ledger: Ledger,
        listeners: Sequence[Callable[[Event], None]],
        record: RunTree,
    ) -> Outcome:
        from rlm.engine.rollout import Rollout  # imported on first use: saves import time

        tree = CallTree(self._settings, self._models, self._environment, ledger, tuple(listeners), record)
        ledger.start()
        outcome = await Rollout(
            tree,
            self._models.root,
            context,
            question,
            conversation=self.conversation,
            answer_format=answer_format,
        ).run()
        if self.conversation is not None:
            self.conversation.remember(outcome.messages, outcome.response)
        return outcome

    @property
    def fingerprint(self) -> str:
        """See `RLM.fingerprint`."""
        settings, models = self._settings, self._models
        return fingerprint(
            [
                [
                    _identity_of(models.root.client),
                    {model.name: _identity_of(model.client) for model in models},
                ],
                [models.by_depth, models.root.sampling, models.sub_sampling],
                [settings.root.tools.identity(), settings.below.tools.identity()],
                [settings.max_depth, settings.max_iterations, settings.compaction, settings.prologue],
                [settings.root.system_prompt, settings.below.system_prompt],
                settings.repl.changed(),
            ]
        )


async def _describe(context: Context) -> dict[str, Any]:
    """Returns kind, size and SHA-256 of an input. The hash is None if the caller closed the context during the run."""
    try:
        if context.encoded_size <= _HASHED_AT_ONCE:
            return context.describe()
        return await asyncio.to_thread(context.describe)
    except ValueError:
        return {"kind": context.kind, "size": context.size, "sha256": None}


def _identity_of(client: Client) -> list[Any]:
    """The part of a client that answers depend on: its model and sampling arguments, not its server."""
    return [client.model, dict(client.sampling_args)]


def _trip(loop: asyncio.AbstractEventLoop, ledger: Ledger) -> None:
    loop.call_soon_threadsafe(ledger.trip, CancellationError())


def _is_result(outcome: Outcome) -> bool:
    """Whether an outcome with an error is a result nevertheless: there is an answer, or a training endpoint ended the
    rollout."""
    return outcome.stats.answered or isinstance(outcome.error, RolloutStoppedError)
