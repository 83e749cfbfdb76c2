"""The public face of the engine: configuration in, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from rlm import _options, environments
from rlm.aio.background import background
from rlm.aio.notebooks import heeding_notebooks
from rlm.aio.waiting import until_done
from rlm.cancellation import CancelToken
from rlm.clients import make_client
from rlm.clients.base import Client
from rlm.context import Context
from rlm.engine import prompts
from rlm.engine.call_tree import Outcome, Tree, stop_reason
from rlm.engine.callbacks import Callbacks
from rlm.engine.ledger import Ledger
from rlm.engine.models import Models
from rlm.engine.request_keys import fingerprint
from rlm.engine.settings import RunSetup, TreeSettings
from rlm.errors import CancellationError, ConfigError, LimitError, RLMError, RolloutStoppedError
from rlm.repl.persistent import Conversation
from rlm.repl.tools import Toolbox
from rlm.types import RLMChatCompletion, RunStats, SamplingArgs

if TYPE_CHECKING:  # what an RLM is not made of is imported when it runs: half of all
    from rlm.batch.map import Inputs, MapOptions
    from rlm.engine.answer_format import AnswerFormat
    from rlm.events import Event
    from rlm.logger import RLMLogger
    from rlm.types import MapItem


class RLM:
    """A recursive language model: asks a question about an input of almost any length.

        rlm = RLM(backend="vllm", backend_kwargs={"model_name": "...", "base_url": "http://localhost:8000/v1"})
        print(rlm.completion(text, root_prompt="How many of the messages are spam?").response)

    One object serves any number of completions at once, from any thread and any event loop; with `persistent=True` one after
    the other.
    """

    @_options.names_nearest("RLM")
    def __init__(
        self,
        backend: str = "openai",
        backend_kwargs: Mapping[str, Any] | None = None,
        environment: str = "local",
        environment_kwargs: Mapping[str, Any] | None = None,
        depth: int = 0,
        max_depth: int = 1,
        max_iterations: int = 30,
        max_budget: float | None = None,
        max_timeout: float | None = None,
        max_tokens: int | None = None,
        max_errors: int | None = None,
        custom_system_prompt: str | None = None,
        other_backends: Sequence[str] | None = None,
        other_backend_kwargs: Sequence[Mapping[str, Any]] | None = None,
        logger: RLMLogger | None = None,
        verbose: bool = False,
        persistent: bool = False,
        custom_tools: Mapping[str, Any] | None = None,
        custom_sub_tools: Mapping[str, Any] | None = None,
        compaction: bool = False,
        compaction_threshold_pct: float = 0.85,
        max_concurrent_subcalls: int = 4,
        on_subcall_start: Callable[[int, str, str], object] | None = None,
        on_subcall_complete: Callable[[int, str, float, str | None], object] | None = None,
        on_iteration_start: Callable[[int, int], object] | None = None,
        on_iteration_complete: Callable[[int, int, float], object] | None = None,
        sampling_args: SamplingArgs | None = None,
        sub_sampling_args: SamplingArgs | None = None,
        orchestrator: bool = True,
        user_prologue: str | None = None,
        *,
        client: Client | None = None,
        other_clients: Sequence[Client] | Mapping[str, Client] | None = None,
        depth_models: Sequence[str] = (),
        prices: Mapping[str, Any] | None = None,
        max_subcalls: int | None = None,
        max_concurrent_queries: int = 128,
    ) -> None:
        """
        Args:
            backend: the provider of the root's model: one of `rlm.clients.backends()`.
            backend_kwargs: `model_name`, and as the provider needs: `base_url`, `api_key`, `timeout` (seconds),
                `max_retries`, ...
            environment: where the code runs: "local".
            environment_kwargs: `cell_timeout` (seconds), `max_output_chars` (characters), `limits`, `seed`, ... and what
                the place itself takes, such as `isolation`.
            depth: 0; kept for compatibility.
            max_depth: 1: `rlm_query` is a plain model call; 2: it is a child run, whose own `rlm_query` is plain; and so
                on. 0: no REPL at all, the model gets the input as its prompt.
            max_iterations: turns of a run. After the last the model is asked once more, for its answer alone.
            max_budget: USD of a completion and all below it. Every model needs a price, or a provider that reports costs.
            max_timeout: seconds of wall-clock time, likewise.
            max_tokens: input and output tokens, likewise.
            max_errors: cells in a row that may fail.
            custom_system_prompt: in place of `rlm.engine.prompts.system_prompt()`, word for word; custom tools are
                listed after it.
            other_backends: providers of sub-models. The first answers the sub-calls that name no model and drives child
                runs; without any, the root's model does. The code reaches each by its model name.
            other_backend_kwargs: one mapping for each of `other_backends`.
            logger: gets every event; `completion.metadata` then holds the trajectory.
            verbose: shows the run on the console (stderr).
            persistent: completions share one REPL: each finds the variables, the contexts and the histories of those
                before it.
            custom_tools: functions and values for the code, by name: each as it is, or as
                `{"tool": ..., "description": text}`. Functions run here, in the caller's process; arguments, results and
                values are sent by value.
            custom_sub_tools: those of child runs; `custom_tools` if None.
            compaction: a history that grows towards the end of the model's window is replaced by notes that the model
                writes.
            compaction_threshold_pct: the part of the window at which that happens.
            max_concurrent_subcalls: child runs of one run in flight at once.
            on_subcall_start: called with the depth of who answers, the model and the begin of the prompt.
            on_subcall_complete: called with depth, model, seconds, and the error or None.
            on_iteration_start: called with depth and turn (from 1).
            on_iteration_complete: called with depth, turn and seconds.
            sampling_args: sampling arguments of the root's calls, as the provider names them.
            sub_sampling_args: those of all calls below the root; `sampling_args` if None.
            orchestrator: the default system prompt advises to leave reading to sub-models.
            user_prologue: text before the question in each run's first message.
            client: a client of your own for the root, in place of `backend` and `backend_kwargs`.
            other_clients: clients of your own in place of `other_backends`; as a mapping, the code reaches each by its key.
            depth_models: names of the sub-models that answer at depth 1, 2, ...; the last one below that too.
            prices: USD per million tokens by model name, where the built-in table has none or another one: a
                `rlm.clients.prices.Price`, or a dict of its fields.
            max_subcalls: prompts that the code may send in a completion. What is over it fails, and the run goes on.
            max_concurrent_queries: plain sub-calls of a completion in flight at once.

        Raises:
            ConfigError: an option does not fit, or does not exist.
        """
        _options.check(locals())
        self._root = client if client is not None else make_client(backend, **(backend_kwargs or {}))
        others = _options.other_clients(other_clients, other_backends, other_backend_kwargs)
        sampling = dict(sampling_args or {})
        self._models = Models(
            self._root,
            others,
            sampling,
            sampling if sub_sampling_args is None else dict(sub_sampling_args),
            depth_models=depth_models,
            price=_options.pricing(prices, required=max_budget is not None),
        )
        session, place = _options.split_environment(environment_kwargs or {})
        self._environment = environments.make_environment(environment, **place)
        _options.check_session(self._environment, session)
        system = (
            prompts.system_prompt(orchestrator=orchestrator)
            if custom_system_prompt is None
            else custom_system_prompt
        )
        tools = Toolbox.of(custom_tools)
        sub_tools = tools if custom_sub_tools is None else Toolbox.of(custom_sub_tools)
        self._settings = TreeSettings(
            max_depth=max_depth,
            max_iterations=max_iterations,
            max_errors=max_errors,
            max_concurrent_subcalls=max_concurrent_subcalls,
            max_concurrent_queries=max_concurrent_queries,
            root=RunSetup.of(system, tools),
            below=RunSetup.of(system, sub_tools),
            prologue=user_prologue,
            session=session,
            compaction=compaction_threshold_pct if compaction else None,
            callbacks=Callbacks(
                on_subcall_start, on_subcall_complete, on_iteration_start, on_iteration_complete
            ),
        )
        self._limits: dict[str, Any] = {
            "max_timeout": max_timeout,
            "max_tokens": max_tokens,
            "max_budget": max_budget,
            "max_subcalls": max_subcalls,
        }
        self._logger = logger
        self._verbose = verbose
        self._conversation = Conversation(self._environment) if persistent else None
        self._closed = False

    def completion(
        self,
        prompt: Any,
        root_prompt: str | None = None,
        *,
        response_format: Any = None,
        cancel: CancelToken | None = None,
    ) -> RLMChatCompletion:
        """`acompletion` for callers without an event loop. Safe to call from several threads at once.

        A KeyboardInterrupt, or another exception of a signal handler, ends the run, and every process of it, before it goes
        on.

        Raises:
            ConfigError: it is called on rlm's own event loop, by an async tool or a callback say, which would wait for
                itself. Else as `acompletion`.
        """
        return background.run(
            partial(self.acompletion, prompt, root_prompt, response_format=response_format, cancel=cancel)
        )

    async def acompletion(
        self,
        prompt: Any,
        root_prompt: str | None = None,
        *,
        response_format: Any = None,
        cancel: CancelToken | None = None,
    ) -> RLMChatCompletion:
        """Answers one question.

        Args:
            prompt: the input: a str, bytes, a path of a file, a list, tuple or dict of plain values, ...: see `Context`; or a
                `Context` made of one, to share it among several runs.
            root_prompt: the question, shown to the root model. None: the input itself holds it.
            response_format: the form of the answer: a pydantic model class, or a JSON schema as a dict. An answer that does
                not have it goes back to the model; `completion.parsed` is the object.
            cancel: a token by which the completion can be cancelled from anywhere.

        Returns:
            The answer (`response`), why the run ended (`stop`), usage and trajectory. When the endpoint of a training run
            ends the rollout, that is the best answer so far.

        Raises:
            ConfigError: an argument does not fit, or this RLM is closed.
            ContextError: the input cannot be sent to a REPL.
            LimitError: a limit was reached, or `cancel` called, before there was an answer; `partial_answer` and
                `completion` hold what there is.
            AnswerFormatError: turns ran out without an answer of the form; likewise.
            ModelError: the root's model failed for good; likewise.
            REPLError: the REPL could not be had; likewise.
        """
        return await self._complete(prompt, root_prompt, response_format, cancel)

    async def stream(
        self,
        prompt: Any,
        root_prompt: str | None = None,
        *,
        response_format: Any = None,
        cancel: CancelToken | None = None,
    ) -> AsyncGenerator[Event]:
        """Yields the events of a completion (`rlm.events`) as they happen; the last one, `Completed`, holds what
        `acompletion` returns. Leaving the loop early cancels the run (use `contextlib.aclosing` to have that wait for its
        end).

        Args, errors: as `acompletion`; an error is raised after the events that led to it.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        task = asyncio.ensure_future(
            self._complete(prompt, root_prompt, response_format, cancel, listener=queue.put_nowait)
        )
        task.add_done_callback(lambda _: queue.put_nowait(None))
        root = ""
        try:
            while (event := await queue.get()) is not None:
                root = root or event.run
                yield event
            completion = await task
            from rlm.events import Completed

            yield Completed(time=time.time(), run=root, parent=None, depth=0, completion=completion)
        finally:
            task.cancel()
            try:
                await until_done(task)  # and tell the caller if it was cancelled meanwhile
            finally:
                if not task.cancelled():
                    task.exception()  # was raised above, or has nobody left to go to

    async def _complete(
        self,
        prompt: Any,
        question: str | None,
        response_format: Any,
        cancel: CancelToken | None,
        listener: Callable[[Event], None] | None = None,
    ) -> RLMChatCompletion:
        if self._closed:
            raise ConfigError("this RLM is closed; make a new one")
        _options.check_call(question, cancel)
        form = None
        if response_format is not None:
            from rlm.engine.answer_format import AnswerFormat

            form = AnswerFormat(response_format)
        trajectory = self._logger.trajectory() if self._logger is not None else None
        listeners = [] if listener is None else [listener]
        if trajectory is not None:
            listeners.append(trajectory.record)
        if self._verbose:
            from rlm.console.console import Console  # rich takes a while to import

            listeners.append(Console().show)
        if "opentelemetry.trace" in sys.modules:
            from rlm.logger import telemetry

            if (spans := telemetry.listener()) is not None:
                listeners.append(spans)
        completion, error = await self._run(prompt, question, form, cancel, listeners)
        if trajectory is not None:
            completion.metadata = trajectory.metadata()
        if error is None:
            return completion
        error.completion = completion
        try:
            raise error
        finally:
            del error  # its traceback has this frame, and would hold the input until a garbage collection

    async def _run(
        self,
        prompt: Any,
        question: str | None,
        form: AnswerFormat | None,
        cancel: CancelToken | None,
        listeners: Sequence[Callable[[Event], None]],
    ) -> tuple[RLMChatCompletion, RLMError | None]:
        """The completion, and what is to be raised instead."""
        from rlm.engine.rollout import Rollout

        context = await Context.made(prompt)
        async with contextlib.AsyncExitStack() as stack:
            if context is not prompt and self._conversation is None:
                stack.callback(context.close)
            ledger = Ledger(**self._limits)
            stack.callback(ledger.stop)
            stack.enter_context(heeding_notebooks())
            if cancel is not None:
                stack.enter_context(cancel.calling(partial(_trip, asyncio.get_running_loop(), ledger)))
            refusal = await self._wait(stack, ledger)
            started = time.perf_counter()
            if refusal is not None:
                outcome = Outcome("", stop_reason(refusal), refusal, RunStats(), [], [])
            else:
                tree = Tree(self._settings, self._models, self._environment, ledger, tuple(listeners))
                ledger.start()
                root, conversation = self._models.root, self._conversation
                outcome = await Rollout(
                    tree, root, context, question, conversation=conversation, answer_format=form
                ).run()
                if conversation is not None:
                    conversation.remember(outcome.messages, outcome.response)
            seconds = time.perf_counter() - started
            description = None
            if not isinstance(prompt, str | bytes | Context):  # those stay as they are
                description = await asyncio.to_thread(context.describe)
        completion = self._completion(prompt, description, outcome, ledger, seconds)
        return completion, None if _is_result(outcome) else outcome.error

    async def _wait(self, stack: contextlib.AsyncExitStack, ledger: Ledger) -> LimitError | None:
        """Waits for the turn of a completion, where there are turns, until the stack is left. Returns why it will not have
        one: it was cancelled before."""
        if self._conversation is None:
            return None
        try:
            async with ledger.guard():
                await stack.enter_async_context(self._conversation.turn())
        except LimitError as error:
            return error
        return None

    def map(
        self,
        inputs: Inputs,
        root_prompt: str | None = None,
        *,
        concurrency: int = 8,
        **options: Unpack[MapOptions],
    ) -> list[MapItem]:
        """`amap` for callers without an event loop. What a KeyboardInterrupt leaves undone, `resume` takes up."""
        return background.run(partial(self.amap, inputs, root_prompt, concurrency=concurrency, **options))

    async def amap(
        self,
        inputs: Inputs,
        root_prompt: str | None = None,
        *,
        concurrency: int = 8,
        **options: Unpack[MapOptions],
    ) -> list[MapItem]:
        """Runs a completion for each of many inputs, several at once; results come in the order of the inputs.

        Args, errors: see `rlm.batch.map.amap`.
        """
        if self._conversation is not None:
            raise ConfigError(
                "map runs its inputs side by side, and this RLM has one REPL for all: leave out persistent"
            )
        from rlm.batch.map import amap

        return await amap(self, inputs, root_prompt, concurrency=concurrency, **options)

    @property
    def fingerprint(self) -> str:
        """What an answer depends on besides input, question and form, as a hash: models, sampling, prompts, tools, depth,
        turns, compaction and the settings of REPLs. Limits, keys and URLs are no part of it, nor is what functions among the
        tools do: only how they look to the code."""
        settings, models = self._settings, self._models
        return fingerprint(
            [
                [_asked(models.root.client), {model.name: _asked(model.client) for model in models}],
                [models.by_depth, models.root.sampling, models.sub_sampling],
                [settings.root.tools.identity(), settings.below.tools.identity()],
                [settings.max_depth, settings.max_iterations, settings.compaction, settings.prologue],
                [settings.root.system_prompt, settings.below.system_prompt],
                settings.session,
            ]
        )

    def close(self) -> None:
        """Refuses further completions, and ends a persistent REPL. Runs under way end by themselves."""
        self._closed = True
        if self._conversation is not None:
            self._conversation.close()

    async def aclose(self) -> None:
        """`close`, for `async with`; a persistent REPL is gone when it returns."""
        self._closed = True
        if self._conversation is not None:
            await self._conversation.aclose()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an RLM cannot be pickled or copied, as it has connections and processes: make one in each process; in one process "
            "a single RLM serves any number of completions at once"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _completion(
        self,
        prompt: Any,
        description: dict[str, Any] | None,
        outcome: Outcome,
        ledger: Ledger,
        seconds: float,
    ) -> RLMChatCompletion:
        return RLMChatCompletion(
            root_model=self._root.model,
            prompt=prompt,
            response=outcome.response,
            usage_summary=ledger.summary,
            execution_time=seconds,
            error=None if outcome.error is None else str(outcome.error),
            stop=outcome.stop,
            stats=outcome.stats,
            messages=outcome.messages,
            iterations=outcome.iterations,
            parsed=outcome.parsed,
            description=description,
        )


def _asked(client: Client) -> list[Any]:
    """What a client asks for, wherever it asks."""
    return [client.model, getattr(client, "sampling_args", None)]


def _trip(loop: asyncio.AbstractEventLoop, ledger: Ledger) -> None:
    loop.call_soon_threadsafe(ledger.trip, CancellationError())


def _is_result(outcome: Outcome) -> bool:
    """Whether an outcome with an error is returned all the same: there is an answer, or a training endpoint wanted no
    more of it."""
    return outcome.stats.answered or isinstance(outcome.error, RolloutStoppedError)
