"""The options of `RLM` have one description, `rlm.Options`: signature, command line and docs agree with it."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
import textwrap
from dataclasses import MISSING, FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM, ConfigError, Options
from rlm.cli import make_parser
from rlm.environments.local import LocalEnvironment
from rlm.environments.program import ProgramEnvironment
from rlm.repl.repl_settings import DEFAULT_LIMITS, REPLSettings

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


def test_the_docs_list_each_setting_of_a_repl_with_its_default() -> None:
    assert table("Settings of every place") == rows(REPLSettings)


def test_the_docs_list_each_resource_limit_with_its_default() -> None:
    cells = [row.split(" | ") for row in table("Resource limits")]
    assert {cell[0].strip("| `"): int(cell[1].strip("`")) for cell in cells} == dict(DEFAULT_LIMITS)


@pytest.mark.parametrize(("name", "place"), [("local", LocalEnvironment), ("program", ProgramEnvironment)])
def test_the_docs_list_each_setting_of_a_place_with_its_default(name: str, place: type[Any]) -> None:
    cells = [row.split(" | ") for row in table(f"Settings of {name}")]
    defaults = {
        parameter.name: "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"
        for parameter in inspect.signature(place).parameters.values()
    }
    assert {cell[0].strip("| `"): cell[1] for cell in cells} == defaults
