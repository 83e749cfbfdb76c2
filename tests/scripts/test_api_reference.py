"""docs/api.md is what the docstrings say."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import rlm
from scripts import api_reference

DOCUMENT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def entry(title: str) -> str:
    found = re.search(
        rf"^(#+) `{re.escape(title)}`.*?\n(.*?)(?=^#{{2,4}} |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"docs/api.md has no {title}: make api"
    return found[2]


def test_it_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert api_reference.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_one_is_noticed_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(api_reference, "TARGET", tmp_path / "api.md")
    assert api_reference.main(["--check"]) == 1
    (tmp_path / "api.md").write_text("old")
    assert api_reference.main(["--check"]) == 1
    assert "make api" in capsys.readouterr().err
    assert api_reference.main([]) == 0
    assert api_reference.main(["--check"]) == 0


def test_it_has_every_public_name() -> None:
    for name in api_reference.MODULES:
        module = import_module(name)
        for public in getattr(module, "__all__", ()):
            if not inspect.ismodule(getattr(module, public)):
                assert re.search(rf"^(### )?`{re.escape(public)}`", DOCUMENT, re.MULTILINE), (
                    f"{name}.{public}"
                )


def test_an_entry_has_signature_text_and_arguments() -> None:
    parameters = list(inspect.signature(rlm.RLM).parameters)
    said = entry("RLM")
    assert re.findall(r"^    (\w+):", said, re.MULTILINE) == parameters
    assert "A recursive language model: asks a question" in said
    assert "- `max_timeout`: seconds" in said
    said = entry("RLM.acompletion")
    assert said.lstrip().startswith("```py\nawait acompletion(\n    prompt: Any,\n")
    assert "**Raises**\n\n- `ConfigError`: " in said
    assert "- `partial" not in entry("RLMError")
    assert "The best answer so far" in entry("RLMError.partial_answer")
    assert "- `ANSWERED = 'answered'`: The code set" in entry("StopReason")
