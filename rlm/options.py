"""The options of an `RLM`, with type, unit and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rlm import _checks
from rlm._wording import a
from rlm.clients.base import Client, check_client
from rlm.errors import ConfigError
from rlm.types import SamplingArgs

if TYPE_CHECKING:
    from rlm.logger import RLMLogger


@dataclass(frozen=True)
class Options:
    """The options of `RLM`, which takes them as keyword arguments: `RLM(max_depth=2)`. A limit that is None does not apply.

    Raises:
        ConfigError: an option does not fit. Arguments of providers, settings of the environment, prices and tools are checked
            later, when the `RLM` is made.
    """

    backend: str = "openai"
    """Provider of the root's model: one of `rlm.clients.backends()`."""
    backend_kwargs: Mapping[str, Any] | None = field(default=None, repr=False)
    """Arguments of the provider: `model_name`, `base_url`, `api_key`, `timeout` (seconds), ..."""
    environment: str = "local"
    """Place where the code runs: one of `rlm.environments.names()`."""
    environment_kwargs: Mapping[str, Any] | None = field(default=None, repr=False)
    """Settings of the place and of its REPLs. The page docs/options.md lists them, with units and defaults."""
    depth: int = 0
    """Always 0. Kept because the original RLM has this option."""
    max_depth: int = 1
    """Levels of runs with a REPL. 1: `rlm_query` is a plain model call. 2: it is a child run, whose own `rlm_query` is a plain
    call. 0: the model gets the input as its prompt, without a REPL."""
    max_iterations: int = 30
    """Turns of a run. After the last turn the model is asked once more, for its answer alone."""
    max_budget: float | None = None
    """USD of a completion and everything below it. Each model needs a price (`prices`), or a provider that reports costs."""
    max_timeout: float | None = None
    """Seconds of wall-clock time of a completion and everything below it."""
    max_tokens: int | None = None
    """Input and output tokens of a completion and everything below it."""
    max_errors: int | None = None
    """Cells in a row that may fail before the run ends."""
    custom_system_prompt: str | None = None
    """System prompt in place of `rlm.engine.prompts.system_prompt()`. Custom tools are listed after it."""
    other_backends: Sequence[str] | None = None
    """Providers of sub-models. The first sub-model answers the sub-calls that name no model, and drives child runs. Without
    sub-models, the root's model does both. The code names a sub-model by its model name."""
    other_backend_kwargs: Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    """Arguments of these providers: one mapping for each of `other_backends`."""
    logger: RLMLogger | None = None
    """Logger that gets every event. `completion.metadata` then holds the trajectory."""
    verbose: bool = False
    """Whether the run is shown on the console (stderr)."""
    persistent: bool = False
    """Whether completions share one REPL. Each then finds the variables, contexts and histories of the earlier ones."""
    custom_tools: Mapping[str, Any] | None = None
    """Functions and values for the code, by name. A tool is the function or value itself, or `{"tool": ..., "description":
    text}`. Functions run in the caller's process; arguments, results and values are sent by value."""
    custom_sub_tools: Mapping[str, Any] | None = None
    """Tools of child runs. None: `custom_tools`."""
    compaction: bool = False
    """Whether notes of the model replace a history that nears the end of its window."""
    compaction_threshold_pct: float = 0.85
    """Part of the window at which the history is compacted: above 0, at most 1."""
    max_concurrent_subcalls: int = 4
    """Child runs of one run in flight at once."""
    on_subcall_start: Callable[[int, str, str], object] | None = None
    """Called when a sub-call starts. Gets its depth, its model and the beginning of its prompt."""
    on_subcall_complete: Callable[[int, str, float, str | None], object] | None = None
    """Called when a sub-call ends. Gets its depth, its model, its seconds, and its error or None."""
    on_iteration_start: Callable[[int, int], object] | None = None
    """Called when a turn starts. Gets the depth of its run and its number, from 1."""
    on_iteration_complete: Callable[[int, int, float], object] | None = None
    """Called when a turn ends. Gets the depth of its run, its number and its seconds."""
    sampling_args: SamplingArgs | None = None
    """Sampling arguments of the root's calls, as the provider names them."""
    sub_sampling_args: SamplingArgs | None = None
    """Sampling arguments of all calls below the root. None: `sampling_args`."""
    orchestrator: bool = True
    """Whether the default system prompt advises the model to leave reading to sub-models."""
    user_prologue: str | None = None
    """Text before the question in the first message of each run."""
    _: KW_ONLY
    client: Client | None = None
    """Client of your own for the root's model, in place of `backend` and `backend_kwargs`."""
    other_clients: Sequence[Client] | Mapping[str, Client] | None = None
    """Clients of your own in place of `other_backends`. The code names each by its model, or by its key in a mapping."""
    depth_models: Sequence[str] = ()
    """Names of the sub-models that answer at depth 1, 2, ... The last one answers at all greater depths too."""
    prices: Mapping[str, Any] | None = None
    """USD per million tokens by model name: a `rlm.clients.prices.Price` or a dict of its fields. It wins over the built-in
    table."""
    max_subcalls: int | None = None
    """Prompts that the code may send in a completion. A prompt beyond that fails, and the run continues."""
    max_concurrent_queries: int = 128
    """Plain sub-calls of a completion in flight at once."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_kinds()
        self._check_callbacks()
        self._check_models()
        self._check_depth()

    def _check_numbers(self) -> None:
        for name, least in (
            ("max_depth", 0),
            ("max_iterations", 1),
            ("max_concurrent_subcalls", 1),
            ("max_concurrent_queries", 1),
        ):
            _checks.check_integer(name, getattr(self, name), least)
        for name, least in (("max_errors", 1), ("max_tokens", 1), ("max_subcalls", 0)):
            if getattr(self, name) is not None:
                _checks.check_integer(name, getattr(self, name), least)
        for name, unit in (("max_timeout", "seconds"), ("max_budget", "USD")):
            value = getattr(self, name)
            if value is not None and not (_checks.is_number(value) and value > 0):
                raise ConfigError(f"{name} must be a number of {unit} above 0, or None, and is {value!r}")
        threshold = self.compaction_threshold_pct
        if not (_checks.is_number(threshold) and 0 < threshold <= 1):
            raise ConfigError(
                f"compaction_threshold_pct must be a part of the window, above 0 and at most 1, not {threshold!r}"
            )

    def _check_kinds(self) -> None:
        for name in ("verbose", "persistent", "compaction", "orchestrator"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, and is {getattr(self, name)!r}")
        for name in ("backend", "environment"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a name, and is {a(getattr(self, name))}")
        for name in ("custom_system_prompt", "user_prologue"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name} must be a str or None, and is {a(getattr(self, name))}")
        for name in ("sampling_args", "sub_sampling_args", "backend_kwargs", "environment_kwargs"):
            if getattr(self, name) is not None:
                _checks.check_names(name, getattr(self, name))
        logger = self.logger
        if logger is not None and (
            isinstance(logger, type) or not callable(getattr(logger, "trajectory", None))
        ):
            raise ConfigError(f"logger must be an RLMLogger or None, and is {a(logger)}")

    def _check_callbacks(self) -> None:
        for name in (option.name for option in fields(self) if option.name.startswith("on_")):
            function = getattr(self, name)
            if function is None:
                continue
            if not callable(function):
                raise ConfigError(f"{name} must be a function, and is {function!r}")
            if inspect.iscoroutinefunction(function):
                raise ConfigError(f"{name} must be a plain function, not an async one")

    def _check_models(self) -> None:
        from rlm.clients.chat_format import merge_sampling

        for name in ("sampling_args", "sub_sampling_args"):
            try:
                merge_sampling({}, getattr(self, name))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
        if self.client is not None:
            check_client("client", self.client)
            if self.backend_kwargs or self.backend != "openai":  # the default: no backend was given
                raise ConfigError("client takes the place of backend and backend_kwargs: give one of them")
        _checks.check_list("depth_models", self.depth_models, str, "names of models")
        _check_other_backends(self.other_backends, self.other_backend_kwargs)
        if self.other_clients is not None:
            if self.other_backends is not None:
                raise ConfigError("other_clients takes the place of other_backends: give one of them")
            _check_other_clients(self.other_clients)

    def _check_depth(self) -> None:
        if self.depth != 0:
            raise ConfigError(
                "depth must be 0, as the engine counts it itself; max_depth sets how deep a run may go"
            )
        if self.max_depth == 0:
            for name in ("persistent", "compaction", "custom_tools", "custom_sub_tools"):
                if getattr(self, name):
                    raise ConfigError(f"{name} needs a REPL, and max_depth=0 is a run without one")


def _check_other_backends(backends: Sequence[str] | None, kwargs: Sequence[Mapping[str, Any]] | None) -> None:
    if backends is not None:
        _checks.check_list("other_backends", backends, str, "names of backends")
    if kwargs is not None:
        _checks.check_list("other_backend_kwargs", kwargs, Mapping, "dicts")
    if len(backends or ()) != len(kwargs or ()) or (backends is None) != (kwargs is None):
        raise ConfigError("other_backends and other_backend_kwargs go together: one mapping for each backend")
    for number, options in enumerate(kwargs or ()):
        _checks.check_names(f"other_backend_kwargs[{number}]", options)


def _check_other_clients(clients: object) -> None:
    if isinstance(clients, Mapping):
        _checks.check_names("other_clients", clients)
        for name, client in clients.items():
            check_client(f"other_clients[{name!r}]", client)
        return
    _checks.check_list("other_clients", clients, object, "clients, or a dict of names and clients")
    assert isinstance(clients, Sequence)
    for number, client in enumerate(clients):
        check_client(f"other_clients[{number}]", client)
