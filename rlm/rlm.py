"""`RLM`: configuration in, answers out."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from rlm._checks import check_call
from rlm._keywords import check_keywords, takes
from rlm.aio.background import background
from rlm.aio.waiting import until_done
from rlm.cancellation import CancelToken
from rlm.engine.engine import Engine
from rlm.errors import ConfigError
from rlm.options import Options
from rlm.types import RLMChatCompletion

if TYPE_CHECKING:  # imported on first use: saves half of the import time
    from rlm.batch.map import Inputs, MapOptions
    from rlm.events import Event
    from rlm.types import MapItem


class RLM:
    """A recursive language model: answers a question about an input of almost any length.

        rlm = RLM(backend="vllm", backend_kwargs={"model_name": "...", "base_url": "http://localhost:8000/v1"})
        print(rlm.completion(text, root_prompt="How many of the messages are spam?").response)

    One object serves any number of completions at once, from any thread and any event loop. With `persistent=True` it serves
    them one after the other.
    """

    @takes(Options, "RLM")
    def __init__(self, options: Options) -> None:
        """Every field of `rlm.Options`, which explains them, is a keyword argument: `RLM(max_depth=2)`.

        Raises:
            ConfigError: an option does not fit, or does not exist.
        """
        self._engine = Engine(options)
        self._logger = options.logger
        self._verbose = options.verbose
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

        A KeyboardInterrupt, or another exception of a signal handler, first ends the run and all its processes, and is then
        raised.

        Raises:
            ConfigError: the caller runs on rlm's own event loop (an async tool or a callback, for example), which would wait
                for itself.
            RLMError: see `acompletion`.
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
            prompt: the input: a str, bytes, a path of a file, a list, tuple or dict of plain values, ... (see `Context`), or a
                `Context`, which several runs can share.
            root_prompt: the question, shown to the root model. None: the input itself holds the question.
            response_format: the form of the answer: a pydantic model class, or a JSON schema as a dict. An answer of another
                form goes back to the model. `completion.parsed` is the object.
            cancel: a token that cancels the completion from anywhere.

        Returns:
            The answer (`response`), why the run ended (`stop`), usage and trajectory. If the endpoint of a training run ends
            the rollout, `response` is the best answer so far.

        Raises:
            ConfigError: an argument does not fit, or this RLM is closed.
            ContextError: the input cannot be sent to a REPL.
            LimitError: a limit was reached, or `cancel` was cancelled, before there was an answer. `partial_answer` and
                `completion` hold what there is; they do so on the errors below too.
            AnswerFormatError: the turns ran out without an answer of the form.
            ModelError: the root's model failed for good.
            REPLError: the REPL could not be started or replaced.
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
        """Yields the events of a completion (`rlm.events`) as they happen. The last one, `Completed`, holds what `acompletion`
        returns. Leaving the loop early cancels the run; with `contextlib.aclosing` it also waits for the run's end.

        The arguments and errors are those of `acompletion`. An error is raised after the events that led to it.
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
                await until_done(task)  # raises CancelledError if the caller is cancelled meanwhile
            finally:
                if not task.cancelled():
                    task.exception()  # marks the error as seen: it was raised above, or its reader is gone

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
        check_call(question, cancel)
        answer_format = None
        if response_format is not None:
            from rlm.engine.answer_format import AnswerFormat

            answer_format = AnswerFormat(response_format)
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
        completion, error = await self._engine.run(
            prompt, question, answer_format=answer_format, cancel=cancel, listeners=listeners
        )
        if trajectory is not None:
            completion.metadata = trajectory.metadata()
        if error is None:
            return completion
        error.completion = completion
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: the input would stay until a garbage collection

    def map(
        self,
        inputs: Inputs,
        root_prompt: str | None = None,
        *,
        concurrency: int = 8,
        **options: Unpack[MapOptions],
    ) -> list[MapItem]:
        """`amap` for callers without an event loop. After a KeyboardInterrupt, a call with the same `resume` continues."""
        return background.run(partial(self.amap, inputs, root_prompt, concurrency=concurrency, **options))

    async def amap(
        self,
        inputs: Inputs,
        root_prompt: str | None = None,
        *,
        concurrency: int = 8,
        **options: Unpack[MapOptions],
    ) -> list[MapItem]:
        """Runs a completion for each of many inputs, several at once.

        Args:
            inputs: a list or another iterable, also an async one, of what `acompletion` takes as prompt, or of `MapInput`,
                each with a question of its own. At most `concurrency` inputs are read ahead. An iterable that is neither a
                list, nor a tuple, nor async, is read in a thread of its own, so it may block.
            root_prompt: the question, for all inputs without one of their own.
            concurrency: completions at once.
            options: `progress`, `resume`, `response_format` and `cancel`: see `rlm.batch.map.MapOptions`.

        Returns:
            One item for each input that was read, in the order of the inputs. An error of one input is in its item, and does
            not stop the others.

        Raises:
            ConfigError: an argument does not fit, the file of `resume` cannot be written, or the RLM cannot run at all. Runs
                under way are stopped.
            LogError: the file of `resume` is no results file of a map, or has a line that cannot be read.
            asyncio.CancelledError: the caller was cancelled. Runs under way are stopped; finished results are in the file of
                `resume`.
        """
        from rlm.batch.map import MapOptions, run_map

        check_keywords("map", options, [*MapOptions.__annotations__, "concurrency"])
        if self._engine.conversation is not None:
            raise ConfigError(
                "map runs its inputs side by side, and this RLM has one REPL for all: leave out persistent"
            )
        return await run_map(self, inputs, root_prompt, concurrency, **options)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that an answer depends on besides input, question and form: models, sampling, prompts, tools,
        depth, turns, compaction and the settings of REPLs. Limits, keys, URLs and the code of tools are not part of it."""
        return self._engine.fingerprint

    def close(self) -> None:
        """Refuses further completions, and ends a persistent REPL. Runs under way end by themselves."""
        self._closed = True
        if self._engine.conversation is not None:
            self._engine.conversation.close()

    async def aclose(self) -> None:
        """Does what `close` does, and waits until a persistent REPL has ended. `async with` calls it."""
        self._closed = True
        if self._engine.conversation is not None:
            await self._engine.conversation.aclose()

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
