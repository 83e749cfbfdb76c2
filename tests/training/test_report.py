"""The table of an evaluation, from traces.jsonl as verifiers 0.3 and 0.4 write it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlm_train import report


def trace(category: str, reward: float | None, **changes: Any) -> dict[str, Any]:
    """A trace with the fields that the report reads."""
    metrics = {
        "turns": 3.0,
        "subcalls": 4.0,
        "root_input_tokens": 100.0,
        "root_output_tokens": 20.0,
        "sub_input_tokens": 1000.0,
        "sub_output_tokens": 50.0,
    }
    return {
        "task": {"data": {"category": category, "group": "odd"}},
        "agent": {"config": {"model": "configured"}},
        "calls": [{"model": "served"}],
        "rewards": {} if reward is None else {"correct": {"score": reward, "weight": 1.0}},
        "metrics": metrics,
        "info": {"rlm": {"failure": None}},
        "timing": {"agent": {"start": 10.0, "end": 12.5}},
        "ok": True,
        **changes,
    }


def write(path: Path, *traces: dict[str, Any], tail: str = "") -> Path:
    lines = [json.dumps({"traces": [item]}) for item in traces]
    (path / "traces.jsonl").write_text("\n".join(lines) + "\n" + tail)
    return path


def text_of(run: report.Run, note: str | None = None) -> str:
    console = Console(width=100, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        report.render(run, console, note=note)
    return capture.get()


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_rows_are_means_by_category_and_in_total(tmp_path: Path) -> None:
    run = report.read_run(write(tmp_path, trace("user", 1.0), trace("user", 0.5), trace("counting", 0.0)))
    text = text_of(run)
    assert row(text, "user") == ["user", "2", "0.750", "3.0", "4.0", "120", "1,050", "2.5", "0"]
    assert row(text, "counting")[1:3] == ["1", "0.000"]
    assert row(text, "all")[1:3] == ["3", "0.500"]
    assert "model: served" in text
    assert str(tmp_path / "traces.jsonl") in text.replace("\n", "")


def test_rewards_are_weighted_and_summed(tmp_path: Path) -> None:
    rewards = {
        "correct": {"score": 1.0, "weight": 0.5},
        "brief": {"score": 0.25, "weight": 1.0},
        "unscored": None,
    }
    [rollout] = report.read_run(write(tmp_path, trace("user", None, rewards=rewards))).rollouts
    assert rollout.reward == 0.75


def test_a_rollout_that_was_not_scored_counts_as_zero_and_as_failed(tmp_path: Path) -> None:
    broken = trace(
        "user",
        None,
        ok=False,
        metrics={},
        info={},
        timing={},
        calls=[],
        errors=[{"type": "HarnessError", "message": "agent timeout"}],
    )
    text = text_of(report.read_run(write(tmp_path, trace("user", 1.0), broken)))
    assert row(text, "user") == ["user", "2", "0.500", "3.0", "4.0", "120", "1,050", "1.2", "1"]
    assert "failed 1x: HarnessError: agent timeout" in text
    assert "model: configured, served" in text


def test_failures_are_shown_with_their_count(tmp_path: Path) -> None:
    failure = {"where": "model", "type": "ModelUnavailableError", "message": "503 [overloaded]"}
    failed = [trace("user", 0.0, info={"rlm": {"failure": failure}}) for _ in range(2)]
    text = text_of(report.read_run(write(tmp_path, *failed)))
    assert "failed 2x: model: ModelUnavailableError: 503 [overloaded]" in text
    assert row(text, "all")[-1] == "2"


def test_the_note_is_printed_with_the_model(tmp_path: Path) -> None:
    text = text_of(report.read_run(write(tmp_path, trace("user", 1.0))), note="it is no language model")
    assert "it is no language model" in text


def test_any_field_of_the_task_can_group(tmp_path: Path) -> None:
    run = report.read_run(write(tmp_path, trace("user", 1.0), trace("counting", 1.0)), by="group")
    assert {rollout.group for rollout in run.rollouts} == {"odd"}


def test_an_incomplete_last_line_is_skipped_and_counted(tmp_path: Path) -> None:
    run = report.read_run(write(tmp_path, trace("user", 1.0), tail='{"traces": [{"ta'))
    assert len(run.rollouts) == 1
    assert "1 line(s) of the file could not be read" in text_of(run)


@pytest.mark.parametrize("content", ["", "\n", "not json\n"])
def test_a_file_without_rollouts_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "traces.jsonl").write_text(content)
    with pytest.raises(ValueError, match="holds no rollout"):
        report.read_run(tmp_path)


def test_the_command_prints_the_table_and_does_not_import_verifiers(tmp_path: Path) -> None:
    write(tmp_path, trace("user", 1.0))
    code = (
        "import sys; from rlm_train import report; code = report.main(sys.argv[1:]); "
        "sys.exit(code or any(name.startswith('verifiers') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "all")[1:3] == ["1", "1.000"]


def test_the_command_fails_with_a_message_for_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path / "nothing")]) == 1
    assert "No such file" in capsys.readouterr().err
