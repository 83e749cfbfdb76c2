"""The commands in the documents."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oolong.policies.reference import ReferencePolicy
from rlm.testing import ChatRequest, finish, serve

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(180)


def commands(document: str, start: str) -> list[list[str]]:
    """The commands of the sh blocks of a document that begin with `start`, as a shell would split them."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def test_the_readmes_evaluation_and_report_run(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    [command] = commands("README.md", "vf-eval")
    assert commands("docs/evaluation.md", "vf-eval oolong -n") == [command]
    with serve(ReferencePolicy(accuracy=1.0), models=["MODEL"]) as server:
        typed = [word.replace("http://localhost:8000/v1", server.base_url) for word in command]
        program = start(*verifiers_command(*typed), RLM_API_KEY="none")
        code, left = program.wait()
    assert code == 0, program.output
    assert left == []
    [run] = (tmp_path / "outputs").iterdir()
    [[_, *report]] = commands("docs/evaluation.md", "python -m rlm_train.report outputs/<run>")
    table = start(sys.executable, *[word.replace("outputs/<run>", str(run)) for word in report])
    code, _ = table.wait()
    assert code == 0, table.output
    assert re.search(r"all +16 +1\.000", table.output)


def test_the_evaluation_from_a_file_runs(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    [command] = commands("docs/evaluation.md", "vf-eval @ configs/eval/oolong.toml")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with serve(ReferencePolicy(accuracy=1.0), models=["MODEL"]) as server:
        small = ["--client.base-url", server.base_url, "-n", "3", "-r", "1"]
        program = start(*verifiers_command(*command, *small), RLM_API_KEY="none")
        code, left = program.wait()
    assert code == 0, program.output
    assert left == []


TICKETS = ROOT / "examples" / "tickets.py"


def clerk(request: ChatRequest) -> str:
    """A policy for the example: its root sorts the messages by sub-calls, and its sub-model by their words."""
    first = request.messages[0]["content"]
    if request.is_subcall:
        topics: dict[str, list[str]] = runpy.run_path(str(TICKETS))["MESSAGES"]
        return next(topic for topic, messages in topics.items() if first.removeprefix("Topic? ") in messages)
    said = "\n".join(message["content"] for message in request.messages)
    found = re.search(r"How many messages are about (\w+)\?", said)
    assert found is not None
    return finish(
        f"topics.count({found[1]!r})",
        "topics = llm_query_batched(['Topic? ' + line for line in context.splitlines()])",
    )


def test_the_training_guides_environment_runs(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert "`examples/tickets.py`" in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert len(TICKETS.read_text(encoding="utf-8").splitlines()) < 60
    [[path, *command]] = commands("docs/training.md", "PYTHONPATH=examples vf-eval tickets")
    assert path == "PYTHONPATH=examples"
    with serve(clerk, models=["MODEL"]) as server:
        typed = [word.replace("http://localhost:8000/v1", server.base_url) for word in command]
        typed += ["--env.taskset.lines", "30"]
        program = start(*verifiers_command(*typed), RLM_API_KEY="none", PYTHONPATH=str(TICKETS.parent))
        code, left = program.wait()
    assert code == 0, program.output
    assert left == []
    [traces] = (tmp_path / "outputs").glob("*/traces.jsonl")
    rollouts = [trace for line in traces.read_text().splitlines() for trace in json.loads(line)["traces"]]
    assert [trace["rewards"]["correct"]["score"] for trace in rollouts] == [1.0] * 4
    assert [trace["metrics"]["subcalls"] for trace in rollouts] == [30.0] * 4
    assert len({trace["task"]["data"]["context_sha256"] for trace in rollouts}) == 4
