"""Evaluation with verifiers' own commands, and the quickstart."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oolong.policies.reference import ReferencePolicy, is_root
from rlm.testing import ChatRequest, Reply, serve
from rlm_train import report

pytestmark = pytest.mark.timeout(180)

PERFECT = ReferencePolicy(accuracy=1.0, sources=["wordnet"])


class Gate:
    """The reference policy for the first `hold` rollouts. It never answers later rollouts."""

    def __init__(self, hold: int) -> None:
        self._hold = hold
        self._seen: set[str] = set()
        self.reached = threading.Event()

    def __call__(self, request: ChatRequest) -> str | Reply:
        if is_root(request.messages):
            question = request.messages[1]["content"]
            self._seen.add(question)
            if len(self._seen) > self._hold:
                self.reached.set()
                return Reply("", delay=600)
        return PERFECT(request)


def traces(path: Path) -> list[dict[str, Any]]:
    return [trace for line in path.read_text().splitlines() for trace in json.loads(line)["traces"]]


def test_a_killed_evaluation_can_be_resumed(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    gate = Gate(hold=2)
    with serve(gate, models=["scripted"]) as server:
        settings = ["--env.taskset.num-tasks", "3", "--env.taskset.sizes", "[6000]", "-c", "1"]
        place = ["--output-dir", "outputs", "--run.name", "run", "--no-push"]
        client = ["-m", "scripted", "--client.base-url", server.base_url, "--client.api-key-var", "KEY"]
        local = ["--env.agent.runtime.type", "subprocess"]
        first = start(*verifiers_command("vf-eval", "oolong", *settings, *client, *local, *place))
        assert gate.reached.wait(120)
        first.send_signal(signal.SIGKILL)
        code, left = first.wait()
    assert code == -signal.SIGKILL
    assert left == []
    run = tmp_path / "outputs" / "run"
    kept = {trace["id"] for trace in traces(run / "traces.jsonl")}
    assert kept

    with serve(PERFECT, models=["scripted"], port=server.port) as server:
        saved = run / "configs" / "resolved" / "eval.json"
        second = start(*verifiers_command("vf-eval", "@", str(saved), "--resume"))
        code, left = second.wait()
    assert code == 0, second.output
    assert left == []
    done = traces(run / "traces.jsonl")
    assert len(done) == 3
    assert kept < {trace["id"] for trace in done}
    assert len({trace["task"]["data"]["id"] for trace in done}) == 3
    assert [trace["rewards"]["correct"]["score"] for trace in done] == [1.0] * 3
    assert len(report.read_run(run).rollouts) == 3


def test_validation_finds_every_task_valid(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    program = start(
        *verifiers_command(
            *("vf-validate", "oolong", "--taskset.num-tasks", "24", "--taskset.sizes", "[6000,20000]"),
            *("--runtime.type", "subprocess", "--output-dir", "outputs"),
        )
    )
    code, left = program.wait()
    assert code == 0, program.output
    assert left == []
    [summary] = (tmp_path / "outputs").glob("*/summary.json")
    outcomes = json.loads(summary.read_text())["outcomes"]
    assert outcomes.pop("valid") == 24
    assert set(outcomes.values()) == {0}


def test_the_quickstart_ends_by_itself_with_a_table(start: Callable[..., Any], tmp_path: Path) -> None:
    program = start(sys.executable, "-m", "oolong.quickstart")
    code, left = program.wait()
    assert code == 0, program.output
    assert left == []
    [file] = (tmp_path / "outputs").glob("quickstart-*/traces.jsonl")
    assert str(file.relative_to(tmp_path)) in program.output
    run = report.read_run(file)
    assert len(run.rollouts) == 16
    assert not any(rollout.failure for rollout in run.rollouts)
    sizes = sorted({trace["task"]["data"]["context_size"] for trace in traces(file)})
    assert len(sizes) == 8
    assert 7_000 < sizes[0] < 9_000
    assert 120_000 < sizes[-1] <= 130_000
    assert {rollout.group.partition(":")[0] for rollout in run.rollouts} == {"counting", "user", "timeline"}
    assert program.output.count("NO LANGUAGE MODEL") == 2
    for group in {rollout.group for rollout in run.rollouts}:
        assert group in program.output


def test_an_interrupted_quickstart_leaves_nothing_behind(start: Callable[..., Any]) -> None:
    gate = Gate(hold=1)
    with serve(gate, models=["scripted"]) as server:
        program = start(sys.executable, "-m", "oolong.quickstart", RLM_BASE_URL=server.base_url)
        assert gate.reached.wait(120)
        program.send_signal(signal.SIGINT)
        code, left = program.wait()
    assert code == 130
    assert left == []
    assert "Traceback" not in program.output
