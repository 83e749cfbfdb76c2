"""The harness's settings agree with the options of `RLM` that they become."""

from __future__ import annotations

import inspect
from typing import Any

from rlm import Options
from rlm.environments.local import LocalEnvironment
from rlm.repl.repl_settings import REPLSettings
from rlm_train.harness_config import RLMHarnessConfig

DIFFERENT = {
    "max_concurrent_subcalls": "bounds plain sub-calls too: many rollouts share one inference server",
    "cell_timeout": "None would let one cell hold a rollout without end",
    "isolation": '"none" would run the code of the policy in the process of the worker',
    "readable": "a TOML file has lists",
    "hidden": "a TOML file has lists",
}
"""Settings with another type or default than the option of the same name, and why."""


def parameters() -> dict[str, inspect.Parameter]:
    """All options and settings of the engine by name."""
    return {
        name: parameter
        for kind in (LocalEnvironment, REPLSettings, Options)
        for name, parameter in inspect.signature(kind).parameters.items()
    }


def described(annotation: Any, default: Any) -> tuple[str, Any]:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text, default


def test_settings_have_the_types_and_defaults_of_the_options() -> None:
    engine = parameters()
    ours = {
        name: described(field.annotation, field.get_default(call_default_factory=True))
        for name, field in RLMHarnessConfig.model_fields.items()
        if name in engine
    }
    differing = {
        name
        for name, what in ours.items()
        if what != described(engine[name].annotation, engine[name].default)
    }
    assert differing == DIFFERENT.keys()
    assert ours.keys() - DIFFERENT.keys() == {
        "checkpoint_bytes",
        "max_depth",
        "max_errors",
        "max_iterations",
        "max_timeout",
        "max_tokens",
    }
