"""The options of `RLM`: one description of which signature, command line and docs are made or checked, and their checks."""

from __future__ import annotations

import ast
import asyncio
import copy
import inspect
import pickle
import re
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM, ConfigError, Options
from rlm.cli import make_parser
from rlm.clients import Client, ModelReply
from rlm.environments import REPLSettings, register_environment
from rlm.environments.local import LocalEnvironment
from rlm.environments.program import ProgramEnvironment
from rlm.repl.repl_settings import DEFAULT_LIMITS
from rlm.testing import FINISH, ScriptedClient
from rlm.types import Message, SamplingArgs

CLIENT = ScriptedClient(lambda request: FINISH)
PAGE = Path(__file__).parents[2] / "docs" / "options.md"


def documented(kind: type[Any]) -> dict[str, str]:
    """The docstrings under the fields of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass by field."""
    return {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(kind)
    }


def rows(kind: type[Any]) -> list[str]:
    """The rows of the docs' table: name, default and the first sentence of the docstring."""
    texts = documented(kind)
    return [
        f"| `{name}` | `{default!r}` | {re.split(r'(?<=[.])(?= [A-Z0-9]|$)', texts[name])[0]} |"
        for name, default in defaults(kind).items()
    ]


def table(title: str) -> list[str]:
    """The rows of the table under a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


def test_the_signature_of_rlm_is_that_of_its_options() -> None:
    assert inspect.signature(RLM).parameters == inspect.signature(Options).parameters
    assert list(inspect.signature(RLM).parameters) == [f.name for f in fields(Options)]


def test_options_before_client_can_be_positional() -> None:
    kinds = {name: parameter.kind for name, parameter in inspect.signature(RLM).parameters.items()}
    keyword_only = [name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY]
    assert keyword_only == [
        "client",
        "other_clients",
        "depth_models",
        "prices",
        "max_subcalls",
        "max_concurrent_queries",
    ]


def test_arguments_that_do_not_fit_the_signature_are_errors_of_rlm() -> None:
    with pytest.raises(TypeError, match=r"^RLM\(\): too many positional arguments"):
        RLM(*["openai"] * 60)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^RLM\(\): multiple values for argument 'backend'"):
        RLM("openai", backend="openai")  # type: ignore[misc]


@pytest.mark.parametrize("kind", [Options, REPLSettings])
def test_each_option_has_a_docstring(kind: type[Any]) -> None:
    assert list(documented(kind)) == [f.name for f in fields(kind)]


def test_options_are_frozen_and_can_be_copied_and_pickled() -> None:
    options = Options(max_depth=2, backend_kwargs={"model_name": "m"})
    with pytest.raises(FrozenInstanceError):
        options.max_depth = 3  # type: ignore[misc]
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options


def test_options_are_checked_when_they_are_made() -> None:
    with pytest.raises(ConfigError, match="max_iterations must be an integer of at least 1, and is 0"):
        Options(max_iterations=0)


def test_the_repr_of_options_holds_no_key() -> None:
    options = Options(
        backend_kwargs={"api_key": "sk-1"},
        other_backends=["vllm"],
        other_backend_kwargs=[{"api_key": "sk-2"}],
        environment_kwargs={"env": {"API_KEY": "sk-3"}},
    )
    assert "sk-" not in repr(options)


def test_the_command_line_has_the_defaults_of_the_options() -> None:
    given = vars(make_parser().parse_args(["run", "What?"]))
    own = defaults(Options)
    same = {name: given[name] for name in own if name in given}
    # `rlm run` chooses the backend itself: vllm if there is a --base-url.
    assert same.pop("backend") is None
    assert same == {name: own[name] for name in same}
    assert same.keys() >= {
        "environment",
        "max_depth",
        "max_iterations",
        "max_timeout",
        "max_tokens",
        "verbose",
    }


def test_the_docs_list_each_option_with_its_default() -> None:
    assert table("Options of RLM") == rows(Options)


def settings(place: str) -> dict[str, list[str]]:
    """The settings of a place by key: unit, default and text."""
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table("Settings of the environment")]
    return {cell[0].strip("`"): cell[2:] for cell in cells if cell[1] == place}


def unit(text: str) -> str:
    """The unit of a setting. Its text begins with it."""
    word = text.split()[0]
    return word.lower() if word in ("Seconds", "Characters", "Bytes", "Processes") else ""


def test_the_docs_list_each_setting_of_a_repl_with_its_unit_and_default() -> None:
    expected = {}
    for row in rows(REPLSettings):
        key, default, text = row.strip("| ").split(" | ", 2)
        expected[key.strip("`")] = [unit(text), default, text]
    assert settings("every") == expected


def test_the_docs_list_each_resource_limit_with_its_default() -> None:
    cells = [row.split(" | ") for row in table("Resource limits")]
    assert {cell[0].strip("| `"): int(cell[2].strip("`")) for cell in cells} == dict(DEFAULT_LIMITS)


@pytest.mark.parametrize(("name", "place"), [("local", LocalEnvironment), ("program", ProgramEnvironment)])
def test_the_docs_list_each_setting_of_a_place_with_its_unit_and_default(name: str, place: type[Any]) -> None:
    listed = settings(name)
    assert {key: default for key, (_, default, _) in listed.items()} == {
        parameter.name: "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        for parameter in inspect.signature(place).parameters.values()
    }
    assert {key: given for key, (given, _, _) in listed.items()} == {
        key: unit(text) for key, (_, _, text) in listed.items()
    }


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_budget": 1.0}, "what 'scripted' costs"),
        ({"max_budget": -1, "prices": {"m": {"input": 1, "output": 1}}}, "max_budget"),
        ({"prices": {"m": {"input": 1}}}, "output"),
        ({"persistent": "yes"}, "persistent"),
        ({"persistent": True, "max_depth": 0}, "REPL"),
        ({"custom_tools": {"not a name": print}}, "identifier"),
        ({"custom_tools": {"context": print}}, "context"),
        ({"compaction": True, "compaction_threshold_pct": 85}, "at most 1"),
        ({"on_iteration_start": 3}, "on_iteration_start"),
        ({"on_subcall_start": asyncio.sleep}, "async"),
        ({"depth_models": ["nobody"]}, "nobody"),
        ({"max_subcalls": -1}, "max_subcalls"),
        ({"sampling_args": [1]}, "sampling_args"),
        ({"user_prologue": 3}, "user_prologue"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_depth": -1}, "max_depth"),
        ({"max_timeout": 0}, "max_timeout"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"depth": 1}, "max_depth"),
        ({"environment": "docker"}, "docker"),
        ({"environment": "locl"}, "local"),
        ({"environment_kwargs": {"cell_timout": 3}}, "cell_timeout"),
        ({"environment_kwargs": {"isolation": "sandbx"}}, "isolation"),
        ({"other_backends": ["vllm"]}, "other_backend_kwargs"),
        ({"backend": "vllm"}, "client takes the place of backend"),
        ({"backend_kwargs": {"model_name": "m"}}, "client takes the place of backend"),
        ({"other_backends": "vllm", "other_backend_kwargs": [{}]}, "other_backends must be a list"),
        (
            {"other_backends": ["vllm"], "other_backend_kwargs": {"base_url": 1}},
            "list of dicts, and is a dict",
        ),
        ({"other_backends": ["vllm"], "other_backend_kwargs": ["m"]}, "list of dicts, and holds a str"),
        ({"other_backends": ["vllm"], "other_backend_kwargs": [{1: 2}]}, "1 is no name"),
        ({"other_backends": 3, "other_backend_kwargs": 3}, "other_backends must be a list"),
        ({"other_clients": "abc"}, "other_clients must be a list of clients"),
        ({"other_clients": ["abc"]}, r"other_clients\[0\] must be a client"),
        ({"other_clients": {"a": 3}}, r"other_clients\['a'\] must be a client"),
        ({"other_clients": {3: CLIENT}}, "3 is no name"),
        ({"depth_models": None}, "depth_models must be a list"),
        ({"depth_models": "scripted"}, "depth_models must be a list of names of models, and is a str"),
        ({"depth_models": [3]}, "depth_models must be a list of names of models, and holds an int"),
        ({"environment": None}, "environment must be a name"),
        ({"environment": []}, "environment must be a name"),
        ({"logger": "logs"}, "logger must be an RLMLogger"),
        ({"environment_kwargs": {3: 4}}, "3 is no name"),
        ({"environment_kwargs": {"cell_timeout": "abc"}}, "cell_timeout must be a positive number"),
        ({"environment_kwargs": {"cell_timeout": -1}}, "cell_timeout must be a positive number"),
        ({"environment_kwargs": {"cell_timeout": 10**400}}, "cell_timeout must be a positive number"),
        ({"environment_kwargs": {"interrupt_grace": "x"}}, "interrupt_grace must be a positive number"),
        ({"environment_kwargs": {"interrupt_grace": None}}, "interrupt_grace must be a positive number"),
        ({"environment_kwargs": {"max_output_chars": "x"}}, "max_output_chars must be a whole number"),
        ({"environment_kwargs": {"max_output_chars": 0}}, "at least 100"),
        ({"environment_kwargs": {"limits": {"memory": 1}}}, "no limit 'memory'"),
        ({"environment_kwargs": {"limits": {"memory_bytes": "x"}}}, "memory_bytes must be a positive whole"),
        ({"environment_kwargs": {"limits": 5}}, "limits must be a dict"),
        ({"environment_kwargs": {"seed": "x"}}, "seed must be a whole number"),
        ({"environment_kwargs": {"checkpoint_bytes": 1.5}}, "checkpoint_bytes must be a whole number"),
        ({"environment_kwargs": {"checkpoint_after": None}}, "checkpoint_after must be a number"),
        (
            {"environment_kwargs": {"isolation": "none", "limits": {"cpu_seconds": 1}}},
            "no limits of resources",
        ),
        ({"sampling_args": {"n": 2}}, "sampling_args: sampling argument n must be 1"),
        ({"sampling_args": {"stream": True}}, "sampling_args: 'stream' is no sampling argument"),
        ({"sampling_args": {"messages": []}}, "'messages' is no sampling argument"),
        ({"sampling_args": {"extra_body": 3}}, "extra_body must be a dict"),
        ({"sampling_args": {1: 2}}, "1 is no name"),
        ({"sub_sampling_args": {"model": "x"}}, "sub_sampling_args: 'model' is no sampling argument"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        RLM(client=CLIENT, **options)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("max_iteration", "did you mean 'max_iterations'"),
        ("custom_tool", "did you mean 'custom_tools'"),
        ("model_name", "backend_kwargs"),
        ("isolation", "environment_kwargs"),
        ("response_format", "completion"),
        ("xyzzy", "there are"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_name(option: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        RLM(client=CLIENT, **{option: 1})  # type: ignore[arg-type]


class Nameless(Client):
    """A client that does not set `model`."""

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "needs model_name"),
        ({"backend": None}, "backend must be a name"),
        ({"backend_kwargs": {1: 2}}, "1 is no name"),
        ({"client": "gpt-5"}, "the name of a model goes into backend_kwargs"),
        ({"client": ScriptedClient}, "client must be a client"),
        (
            {"client": object()},
            "client must be a client, as rlm.clients.make_client makes one, and is an object",
        ),
        (
            {"client": Nameless()},
            "client must have the model's name in its attribute `model`, a str, not None",
        ),
    ],
)
def test_a_model_must_be_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        RLM(**options)


def test_a_place_can_refuse_settings_when_the_rlm_is_made() -> None:
    class Narrow(LocalEnvironment):
        def check(self, settings: REPLSettings) -> None:
            if settings.seed is not None:
                raise ConfigError("there is no chance here")

    register_environment("narrow", Narrow, replace=True)
    with pytest.raises(ConfigError, match="no chance here"):
        RLM(client=CLIENT, environment="narrow", environment_kwargs={"seed": 1})
