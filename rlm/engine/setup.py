"""Makes the parts of an engine from the options of an `RLM`: models, environment, settings of the runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from rlm import environments
from rlm.clients import make_client
from rlm.clients.base import Client, as_client
from rlm.clients.prices import Price, Prices
from rlm.engine import prompts
from rlm.engine.callbacks import Callbacks
from rlm.engine.models import Models
from rlm.engine.settings import RunSetup, TreeSettings
from rlm.errors import ConfigError
from rlm.options import Options
from rlm.repl.interface import Environment
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.tools import Toolbox

_STOP_GRACE = 0.08
"""Seconds between interrupt and kill when the run is stopped and its REPL is not used again. C code does not notice an
interrupt, and nothing needs its result any more."""
_REPL_SETTINGS = {f.name for f in fields(REPLSettings)}


def models_of(options: Options) -> Models:
    """The root's model and the sub-models.

    Raises:
        ConfigError: a provider refuses its arguments, a name does not exist, or a price that the budget needs is unknown.
    """
    root = options.client
    if root is None:
        root = make_client(options.backend, **(options.backend_kwargs or {}))
    sampling = dict(options.sampling_args or {})
    below = sampling if options.sub_sampling_args is None else dict(options.sub_sampling_args)
    return Models(
        as_client(root),
        _other_clients(options),
        sampling,
        below,
        depth_models=options.depth_models,
        price=_pricing(options.prices, required=options.max_budget is not None),
    )


def _other_clients(options: Options) -> dict[str, Client]:
    """The clients of the sub-models, by the names that the code uses."""
    clients = options.other_clients
    if isinstance(clients, Mapping):
        return {name: as_client(client) for name, client in clients.items()}
    if clients is None:
        pairs = zip(options.other_backends or (), options.other_backend_kwargs or (), strict=True)
        clients = [make_client(backend, **kwargs) for backend, kwargs in pairs]
    named: dict[str, Client] = {}
    for client in map(as_client, clients):
        if client.model in named:
            raise ConfigError(
                f"there are two sub-models named {client.model!r}: name them, with "
                "other_clients={'one': make_client(...), 'two': make_client(...)}"
            )
        named[client.model] = client
    return named


def _pricing(prices: Mapping[str, Any] | None, *, required: bool) -> Callable[[Client], Price | None]:
    """Makes a function that returns the price of a client's model, None if it is unknown. The function raises ConfigError
    for an unknown price if prices are `required`."""
    table = Prices(prices)

    def price(client: Client) -> Price | None:
        found = table.of(client.model)
        if found is None and required and not client.reports_cost:
            raise ConfigError(
                f"max_budget needs to know what {client.model!r} costs: give "
                f"prices={{{client.model!r}: {{'input': ..., 'output': ...}}}} in USD per million tokens"
            )
        return found

    return price


def environment_of(options: Options) -> tuple[Environment, REPLSettings]:
    """The place where the code runs, and the settings of its REPLs.

    Raises:
        ConfigError: there is no such place or setting, a setting does not fit, or the place cannot offer it.
    """
    given = options.environment_kwargs or {}
    settings = {name: value for name, value in given.items() if name in _REPL_SETTINGS}
    place = {name: value for name, value in given.items() if name not in _REPL_SETTINGS}
    for name in place:
        near = difflib.get_close_matches(name, _REPL_SETTINGS, n=1)
        if near:
            raise ConfigError(f"environment_kwargs has no {name!r}; did you mean {near[0]!r}?")
    environment = environments.make_environment(options.environment, **place)
    repl = REPLSettings(**settings)
    environment.check(repl)
    return environment, repl


def settings_of(options: Options, repl: REPLSettings) -> TreeSettings:
    """The settings of the runs.

    Args:
        repl: the settings of their REPLs.

    Raises:
        ConfigError: a tool does not fit.
    """
    system = options.custom_system_prompt
    if system is None:
        system = prompts.system_prompt(orchestrator=options.orchestrator)
    tools = Toolbox.of(options.custom_tools)
    sub_tools = tools if options.custom_sub_tools is None else Toolbox.of(options.custom_sub_tools)
    return TreeSettings(
        max_depth=options.max_depth,
        max_iterations=options.max_iterations,
        max_errors=options.max_errors,
        max_concurrent_subcalls=options.max_concurrent_subcalls,
        max_concurrent_queries=options.max_concurrent_queries,
        root=RunSetup.of(system, tools),
        below=RunSetup.of(system, sub_tools),
        prologue=options.user_prologue,
        repl=repl,
        repl_of_one_run=replace(repl, stop_grace=repl.stop_grace or _STOP_GRACE),
        compaction=options.compaction_threshold_pct if options.compaction else None,
        callbacks=Callbacks(
            options.on_subcall_start,
            options.on_subcall_complete,
            options.on_iteration_start,
            options.on_iteration_complete,
        ),
    )
