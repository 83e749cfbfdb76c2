"""The launch files for verifiers' evaluation command."""

from __future__ import annotations

import contextlib
import copy
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf

from oolong.taskset import OolongConfig
from rlm_train import RLMHarnessConfig

ROOT = Path(__file__).parents[2]
FILES = [
    file
    for file in sorted((ROOT / "configs" / "eval").glob("*.toml"))
    if not file.stem.startswith("prime-rl")
]


def test_there_are_evaluation_files() -> None:
    assert "oolong.toml" in [file.name for file in FILES]


def resolved(data: dict[str, Any]) -> Any:
    config_type = importlib.import_module("verifiers.v1.configs.cli.eval").EvalConfig
    return config_type.model_validate(copy.deepcopy(data))


def tables(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The table and all tables inside it."""
    yield data
    for value in data.values():
        if isinstance(value, dict):
            yield from tables(value)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_evaluation_file_repeats_no_default(file: Path) -> None:
    data = tomllib.loads(file.read_text())
    settings = resolved(data).model_dump(mode="json", exclude={"run", "output_dir"})
    for table in tables(data):
        for name, value in list(table.items()):
            if isinstance(value, dict):
                continue
            del table[name]
            with contextlib.suppress(ValueError):  # the value is required
                assert resolved(data).model_dump(mode="json", exclude={"run", "output_dir"}) != settings, name
            table[name] = value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_evaluation_file_is_complete(file: Path) -> None:
    config = resolved(tomllib.loads(file.read_text()))
    assert config.push is False
    assert config.env.taskset.id == config.env.agent.harness.id == "oolong"
    assert config.env.agent.runtime.type == "subprocess"
    assert type(config.env.agent.harness).__name__ == "RLMHarnessConfig"


@pytest.mark.parametrize(
    ("config", "base"), [(OolongConfig, vf.TasksetConfig), (RLMHarnessConfig, vf.HarnessConfig)]
)
def test_the_document_names_every_setting(config: type[vf.BaseConfig], base: type[vf.BaseConfig]) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    ours = set(config.model_fields) - set(base.model_fields)
    assert [name for name in sorted(ours) if f"`{name}" not in text] == []
