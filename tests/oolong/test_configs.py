"""The launch files for verifiers' evaluation command."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest
import verifiers.v1 as vf

from oolong.taskset import OolongConfig
from rlm_train import RLMHarnessConfig

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "eval").glob("*.toml"))


def test_there_are_some() -> None:
    assert "oolong.toml" in [file.name for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_evaluation_file_is_complete(file: Path) -> None:
    config_type = importlib.import_module("verifiers.v1.configs.cli.eval").EvalConfig
    config = config_type.model_validate(tomllib.loads(file.read_text()))
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
