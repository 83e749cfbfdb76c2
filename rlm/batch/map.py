"""One question over many inputs: what `RLM.map` and `RLM.amap` do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from rlm._checks import check_call, check_integer
from rlm._wording import a
from rlm.batch.reader import read
from rlm.batch.results_file import Results
from rlm.context import Context
from rlm.engine.answer_format import AnswerFormat
from rlm.engine.request_keys import fingerprint
from rlm.errors import CancellationError, ConfigError, RLMError
from rlm.types import MapInput, MapItem, MapProgress, RLMChatCompletion

if TYPE_CHECKING:
    from rlm.cancellation import CancelToken

_log = logging.getLogger(__name__)


Inputs = Iterable[Any] | AsyncIterable[Any]
Progress = Callable[[MapProgress], object]


class Runner(Protocol):
    """The part of an `RLM` that a map uses."""

    @property
    def fingerprint(self) -> str: ...

    async def acompletion(
        self, prompt: Any, root_prompt: str | None, *, response_format: Any, cancel: CancelToken | None
    ) -> RLMChatCompletion: ...


class MapOptions(TypedDict, total=False):
    """Options of `RLM.map` and `RLM.amap`."""

    progress: Progress | bool | None
    """Function called with a `MapProgress` at the beginning and after each input. True: a bar on stderr."""
    resume: str | os.PathLike[str] | None
    """JSONL file to which each result is appended. Inputs whose result it holds for the same question and configuration are
    not run again, unless they failed. So a map that was interrupted or killed continues where it stopped."""
    response_format: Any
    """The form of each answer. See `RLM.acompletion`."""
    cancel: CancelToken | None
    """A token that cancels the map. A cancelled map reads no more inputs, and does not wait for one."""


async def run_map(
    runner: Runner,
    inputs: Inputs,
    root_prompt: str | None,
    concurrency: int,
    *,
    progress: Progress | bool | None = None,
    resume: str | os.PathLike[str] | None = None,
    response_format: Any = None,
    cancel: CancelToken | None = None,
) -> list[MapItem]:
    """Runs a completion of `runner` for each input. See `RLM.amap` for arguments, result and errors."""
    total = _check(inputs, concurrency)
    check_call(root_prompt, cancel)
    if not isinstance(resume, str | os.PathLike | None):
        raise ConfigError(f"resume must be the path of a file or None, and is {a(resume)}")
    form = None if response_format is None else AnswerFormat(response_format)
    results = None if resume is None else await asyncio.to_thread(Results, Path(resume))
    with _reporter(progress) as report:
        configuration = await asyncio.to_thread(lambda: runner.fingerprint)  # large tools take a while
        job = _MapJob(runner, results, _Tally(total, report), response_format, form, cancel, configuration)
        async with contextlib.aclosing(_read(inputs, cancel)) as source:
            lock = asyncio.Lock()  # one input is read at a time

            async def work() -> None:
                while True:
                    async with lock:
                        entry = await anext(source, None)
                    if entry is None:
                        return
                    index, given = entry
                    question = root_prompt if given.root_prompt is None else given.root_prompt
                    await job.run(index, given.prompt, question)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(concurrency if total is None else min(concurrency, total)):
                        group.create_task(work())
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
    return [job.items[index] for index in sorted(job.items)]


class _MapJob:
    """Runs the inputs of one map, and collects their items."""

    def __init__(
        self,
        runner: Runner,
        results: Results | None,
        tally: _Tally,
        response_format: Any,
        form: AnswerFormat | None,
        cancel: CancelToken | None,
        configuration: str,
    ) -> None:
        self._runner = runner
        self._results = results
        self._tally = tally
        self._response_format = response_format
        self._form = form
        self._cancel = cancel
        self._configuration = [configuration, None if form is None else form.schema]
        self.items: dict[int, MapItem] = {}

    async def run(self, index: int, prompt: Any, question: str | None) -> None:
        """Runs one input to its end.

        Raises:
            ConfigError: the RLM cannot run at all, so no other input can succeed either.
        """
        key, completion = "", None
        context: Context | None = None
        error: Exception | None = None
        try:
            context = await asyncio.to_thread(Context.of, prompt)
            description = await asyncio.to_thread(context.describe)
            key = fingerprint([description, question, *self._configuration])
            if self._finished(index, key):
                return
            completion = await self._runner.acompletion(
                context, question, response_format=self._response_format, cancel=self._cancel
            )
            completion.prompt = completion.description = description
        except ConfigError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            error = CancellationError("the completion was cancelled, but not by its caller")
        except Exception as failure:
            error = failure
            completion = failure.completion if isinstance(failure, RLMError) else None
            if completion is not None:
                completion.prompt = completion.description = description
        finally:
            if context is not None and context is not prompt:
                context.close()  # the traceback of an item's error would keep it open
        self.items[index] = MapItem(index, completion, error)
        if self._results is not None:
            self._results.add(key, index, question, completion, error)
        self._tally.add(completion, failed=error is not None)

    def _finished(self, index: int, key: str) -> bool:
        """Takes the result of an earlier map, if there is one in the form that is asked for now."""
        problem: str | None
        while self._results is not None and (completion := self._results.take(key)) is not None:
            if self._form is not None:
                completion.parsed, problem = self._form.parse(completion.response)
                if problem is not None:  # a validator has changed, but not the schema
                    continue
            self.items[index] = MapItem(index, completion)
            self._tally.add(None, failed=False)
            return True
        return False


class _Tally:
    """Counts the results and reports the progress."""

    def __init__(self, total: int | None, report: Progress) -> None:
        self._report = report
        self._total = total
        self._done = self._failed = 0
        self._cost: float | None = None
        self._tell()

    def add(self, completion: RLMChatCompletion | None, *, failed: bool) -> None:
        self._done += not failed
        self._failed += failed
        cost = None if completion is None else completion.usage_summary.total_cost
        if cost is not None:
            self._cost = cost + (self._cost or 0.0)
        self._tell()

    def _tell(self) -> None:
        try:
            self._report(MapProgress(self._done, self._failed, self._total, self._cost))
        except Exception:
            _log.exception("the progress callback failed")


def _check(inputs: object, concurrency: object) -> int | None:
    """Checks the arguments. Returns the number of inputs; None if it is unknown."""
    check_integer("concurrency", concurrency, 1)
    if any(kind.__name__ == "DataFrame" for kind in type(inputs).__mro__):  # of pandas, polars, dask, ...
        raise ConfigError(
            "map needs a list or another iterable of inputs, and a DataFrame is an iterable of its column names; give one "
            "column, frame['text'], or its rows, frame.to_dict('records'). For one input use completion"
        )
    if isinstance(inputs, str | bytes | bytearray | Mapping | Context) or not isinstance(
        inputs, Iterable | AsyncIterable
    ):
        raise ConfigError(
            f"map needs a list or another iterable of inputs, not a {type(inputs).__name__}; for one input use completion"
        )
    return len(inputs) if isinstance(inputs, Sized) else None


async def _read(inputs: Inputs, cancel: CancelToken | None) -> AsyncGenerator[tuple[int, MapInput]]:
    """The inputs and their numbers, from 0."""
    index = 0
    async with contextlib.aclosing(read(inputs, cancel)) as source:
        async for given in source:
            yield index, given if isinstance(given, MapInput) else MapInput(given)
            index += 1


@contextlib.contextmanager
def _reporter(progress: Progress | bool | None) -> Iterator[Progress]:
    if progress is True:
        from rlm.console.progress_bar import Bar  # rich takes a while to import

        with Bar() as bar:
            yield bar.show
    elif callable(progress):
        yield progress
    elif progress in (None, False):
        yield lambda _: None
    else:
        raise ConfigError(f"progress must be a function, True or False, and is {progress!r}")
