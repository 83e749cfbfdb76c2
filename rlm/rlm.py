"""The public face of the engine: configuration in, answers out."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Self

from rlm import environments, prompts
from rlm.background import background
from rlm.baseline import plain_call
from rlm.clients import make_client
from rlm.clients.base import Client
from rlm.context import Context
from rlm.environments.base import SessionSpec
from rlm.errors import ConfigError, RolloutStoppedError
from rlm.limits import Ledger
from rlm.logger import RLMLogger
from rlm.models import Models
from rlm.rollout import Rollout
from rlm.tree import Outcome, Settings, Tree
from rlm.types import RLMChatCompletion, SamplingArgs

# Part of the interface that people know, and built in a later version: better refused than ignored.
_NOT_BUILT: Mapping[str, Any] = {
    "max_budget": None,
    "persistent": False,
    "custom_tools": None,
    "custom_sub_tools": None,
    "compaction": False,
    "on_subcall_start": None,
    "on_subcall_complete": None,
    "on_iteration_start": None,
    "on_iteration_complete": None,
}

_SESSION_OPTIONS = {f.name for f in fields(SessionSpec)} - {"contexts", "history"}


class RLM:
    """A recursive language model: asks a question about an input of almost any length.

        rlm = RLM(backend="vllm", backend_kwargs={"model_name": "...", "base_url": "http://localhost:8000/v1"})
        print(rlm.completion(text, root_prompt="How many of the messages are spam?").response)

    One object serves any number of completions at once, from any thread and any event loop.
    """

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
        on_subcall_start: Any = None,
        on_subcall_complete: Any = None,
        on_iteration_start: Any = None,
        on_iteration_complete: Any = None,
        sampling_args: SamplingArgs | None = None,
        sub_sampling_args: SamplingArgs | None = None,
        orchestrator: bool = True,
        user_prologue: str | None = None,
        *,
        client: Client | None = None,
        other_clients: Sequence[Client] | None = None,
    ) -> None:
        """
        Args:
            backend: the provider of the root's model: "openai" or "vllm" (any OpenAI-compatible server).
            backend_kwargs: `model_name`, and as the provider needs: `base_url`, `api_key`, `timeout` (seconds),
                `max_retries`, ...
            environment: where the code runs: "local".
            environment_kwargs: `cell_timeout` (seconds), `max_output_chars` (characters), `limits`, `seed`, ... and what
                the place itself takes.
            depth: 0; kept for compatibility.
            max_depth: 1: `rlm_query` is a plain model call; 2: it is a child run, whose own `rlm_query` is plain; and so
                on. 0: no REPL at all, the model gets the input as its prompt.
            max_iterations: turns of a run. After the last the model is asked once more, for its answer alone.
            max_timeout: seconds of wall-clock time for a completion and all below it.
            max_tokens: input and output tokens of a completion and all below it.
            max_errors: cells in a row that may fail.
            custom_system_prompt: in place of `rlm.prompts.system_prompt()`, word for word.
            other_backends: providers of sub-models. The first answers the sub-calls that name no model and drives child
                runs; without any, the root's model does. The code reaches each by its model name.
            other_backend_kwargs: one mapping for each of `other_backends`.
            logger: gets every event; `completion.metadata` then holds the trajectory.
            verbose: shows the run on the console (stderr).
            max_concurrent_subcalls: sub-calls of one run in flight at once.
            sampling_args: sampling arguments of the root's calls, as the provider names them.
            sub_sampling_args: those of all calls below the root; `sampling_args` if None.
            orchestrator: the default system prompt advises to leave reading to sub-models.
            user_prologue: text before the question in each run's first message.
            client: a client of your own for the root, in place of `backend` and `backend_kwargs`.
            other_clients: clients of your own in place of `other_backends`.

        Raises:
            ConfigError: an option does not fit, does not exist, or is not built yet.
        """
        given = locals()
        for name, neutral in _NOT_BUILT.items():
            if given[name] != neutral:
                raise ConfigError(f"RLM({name}=...) is not built yet; leave it at {neutral!r}")
        _check_numbers(given)
        self._root = client if client is not None else make_client(backend, **(backend_kwargs or {}))
        self._others = _other_clients(other_clients, other_backends, other_backend_kwargs)
        session, options = _split_environment_kwargs(environment_kwargs or {})
        self._environment = environments.make_environment(environment, **options)
        self._sampling = dict(sampling_args or {})
        self._sub_sampling = self._sampling if sub_sampling_args is None else dict(sub_sampling_args)
        system = custom_system_prompt
        self._settings = Settings(
            max_depth=max_depth,
            max_iterations=max_iterations,
            max_errors=max_errors,
            max_concurrent_subcalls=max_concurrent_subcalls,
            system_prompt=prompts.system_prompt(orchestrator=orchestrator) if system is None else system,
            prologue=user_prologue,
            session=session,
        )
        self._max_timeout = max_timeout
        self._max_tokens = max_tokens
        self._logger = logger
        self._verbose = verbose
        self._closed = False

    def completion(self, prompt: Any, root_prompt: str | None = None) -> RLMChatCompletion:
        """`acompletion` for callers without an event loop. Safe to call from several threads at once.

        A KeyboardInterrupt ends the run, and every process of it, before it goes on.
        """
        return background.run(self.acompletion(prompt, root_prompt))

    async def acompletion(self, prompt: Any, root_prompt: str | None = None) -> RLMChatCompletion:
        """Answers one question.

        Args:
            prompt: the input: a str, bytes, or a list, tuple or dict of plain values; or a `Context` made of one, to share it
                among several runs.
            root_prompt: the question, shown to the root model. None: the input itself holds it.

        Returns:
            The answer (`response`), why the run ended (`stop`), usage and trajectory. When the endpoint of a training run
            ends the rollout, that is the best answer so far.

        Raises:
            ContextError: the input cannot be sent to a REPL.
            LimitError: a limit was reached before there was an answer; `partial_answer` and `completion` hold what there is.
            ModelError: the root's model failed for good; likewise.
            REPLError: the REPL could not be had; likewise.
        """
        if self._closed:
            raise ConfigError("this RLM is closed; make a new one")
        context = Context.of(prompt)
        ledger = Ledger(max_timeout=self._max_timeout, max_tokens=self._max_tokens)
        models = Models(self._root, self._others, self._sampling, self._sub_sampling)
        trajectory = self._logger.trajectory() if self._logger is not None else None
        listeners = [] if trajectory is None else [trajectory.record]
        if self._verbose:
            from rlm.logger.console import Console  # rich takes a while to import

            listeners.append(Console().show)
        tree = Tree(self._settings, models, self._environment, ledger, tuple(listeners))
        started = time.perf_counter()
        ledger.start()
        try:
            if self._settings.max_depth == 0:
                outcome = await plain_call(tree, models.root, context, root_prompt)
            else:
                outcome = await Rollout(tree, models.root, context, root_prompt).run()
        finally:
            ledger.stop()
        seconds = time.perf_counter() - started
        completion = self._completion(prompt, outcome, ledger, seconds)
        if trajectory is not None:
            completion.metadata = trajectory.metadata(asdict(iteration) for iteration in outcome.iterations)
        if outcome.error is not None and not _is_result(outcome):
            outcome.error.completion = completion
            raise outcome.error
        return completion

    def close(self) -> None:
        """Refuses further completions. Runs under way end by themselves."""
        self._closed = True

    async def aclose(self) -> None:
        """`close`, for `async with`."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def _completion(self, prompt: Any, outcome: Outcome, ledger: Ledger, seconds: float) -> RLMChatCompletion:
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
        )


def _is_result(outcome: Outcome) -> bool:
    """Whether an outcome with an error is returned all the same: there is an answer, or a training endpoint wanted no
    more of it."""
    return outcome.stats.answered or isinstance(outcome.error, RolloutStoppedError)


def _split_environment_kwargs(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of each REPL, and those of the place."""
    session = {name: value for name, value in given.items() if name in _SESSION_OPTIONS}
    options = {name: value for name, value in given.items() if name not in _SESSION_OPTIONS}
    for name in options:
        near = difflib.get_close_matches(name, _SESSION_OPTIONS, n=1)
        if near:
            raise ConfigError(f"environment_kwargs has no {name!r}; did you mean {near[0]!r}?")
    return session, options


def _check_numbers(given: Mapping[str, Any]) -> None:
    least = {
        "max_depth": 0,
        "max_iterations": 1,
        "max_errors": 1,
        "max_tokens": 1,
        "max_concurrent_subcalls": 1,
    }
    for name, smallest in least.items():
        value = given[name]
        if value is None and name in ("max_errors", "max_tokens"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ConfigError(f"{name} must be an integer of at least {smallest}, and is {value!r}")
    timeout = given["max_timeout"]
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0
    ):
        raise ConfigError(f"max_timeout must be a number of seconds above 0, or None, and is {timeout!r}")
    if given["depth"] != 0:
        raise ConfigError(
            "depth is the engine's own; leave it at 0, and say with max_depth how deep a run may go"
        )
    if given["compaction_threshold_pct"] != 0.85:
        raise ConfigError("RLM(compaction_threshold_pct=...) is not built yet, like compaction itself")


def _other_clients(
    clients: Sequence[Client] | None,
    backends: Sequence[str] | None,
    kwargs: Sequence[Mapping[str, Any]] | None,
) -> list[Client]:
    if clients is not None:
        return list(clients)
    if backends is None and kwargs is None:
        return []
    if backends is None or kwargs is None or len(backends) != len(kwargs):
        raise ConfigError("other_backends and other_backend_kwargs go together: one mapping for each backend")
    return [make_client(backend, **options) for backend, options in zip(backends, kwargs, strict=True)]
