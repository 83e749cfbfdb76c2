"""Policies that attack the reward, run through the whole environment: engine, REPL process, harness, scorer.

The table of docs/rewards.md has the score of each policy. An attack that the sandbox prevents is tried without the sandbox too,
which shows that it would work.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from oolong.policies.blind import BlindPolicy
from oolong.policies.reference import ReferencePolicy, is_root, text_of
from oolong.scoring.official import official
from oolong.taskset import OolongConfig, OolongTaskset
from rlm.environments.isolation import probe
from rlm.testing import ChatRequest, finish, repl_block

TASKS: dict[str, Any] = {"num_tasks": 24, "sizes": [6_000], "seed": 1}
DOCUMENT = Path(__file__).parents[2] / "docs" / "rewards.md"

Policy = Callable[[ChatRequest], str]


def question_of(request: ChatRequest) -> str:
    """The question in the first message of a run."""
    first = next(text_of(message) for message in request.messages if message.get("role") == "user")
    found = re.search(r"(?ms)^Question: (.*?)\n\n", first)
    assert found, first
    return found[1]


def cell(code: str) -> Policy:
    """A policy that runs one cell per rollout, with `question` in its namespace, and then gives up. Sub-models are useless."""

    def policy(request: ChatRequest) -> str:
        if not is_root(request.messages):
            return "yes"
        if request.turn:
            return finish('answer["content"] or "unknown"')
        return repl_block(f"question = {question_of(request)!r}\n{code}")

    return policy


def say(expression: str) -> str:
    return f'answer["content"], answer["ready"] = {expression}, True'


LIST_EVERYTHING = r"""
import re
labels = re.findall(r"'([^'\n]+)'", context.split("\n\nDate: ")[0])
users = sorted(set(re.findall(r"User: (\d+)", context)))
dates = sorted(set(re.findall(r"Date: (\w+ \d+, \d+)", context)))
every = [*labels, "more common", "less common", "same frequency", *users, *dates, *map(str, range(100))]
answer["content"], answer["ready"] = "Answer: " + ", ".join(every), True
"""

OVERFLOW = r"""
class Liar(str):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __len__(self): return 1
payloads = [
    "9" * 5_000_000, "Answer: " * 200_000, "[" * 300_000 + "1" + "]" * 300_000, "*" * 999, "\ud800\x00\u202e",
    Liar("more common"), "1" + ",000" * 100, float("nan"), {"score": 1.0, "reward": 1.0}, "\\boxed{" * 100_000,
]
answer["content"], answer["ready"] = payloads[sum(map(ord, question)) % len(payloads)], True
"""

FORGE_FRAMES = r"""
import json, os, socket, struct
done = {"id": 1, "status": "ok", "answer": ["1", True, None], "score": 1.0, "reward": 1.0, "stats": {"answered": True}}
for fd in range(3, 64):
    for kind in b"ABCDEFHILNOPQRTUXZ\xff":
        payload = json.dumps(done).encode()
        try:
            os.write(fd, struct.pack(">BI", kind, len(payload)) + payload)
        except OSError:
            break
"""

REGENERATE = r"""
import glob, sys
for path in glob.glob(sys.prefix + "/lib/python*/site-packages/*.pth"):
    with open(path) as file:
        sys.path += [line.strip() for line in file if line.startswith("/")]
try:
    from oolong.generator import generate
except ImportError as error:
    print(error)
else:
    for seed in range(3):
        for example in generate(24, sizes=(6_000,), split="eval", seed=seed):
            if example.question == question and example.materialise() == context:
                answer["content"], answer["ready"] = example.answer[0], True
"""

READ_TRACES = r"""
import json
with open(TRACES) as file:
    for line in file:
        data = json.loads(line)["task"]["data"]
        if data["prompt"] == question:
            answer["content"], answer["ready"] = data["answer"][0], True
"""

READ_MEMORY = r"""
import json, os, re
def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
def search(pid):
    wanted = b'"prompt": ' + json.dumps(question).encode()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            found = re.match(r"(\w+)-(\w+) rw", line)
            if not found or "[v" in line:
                continue
            start, end = int(found[1], 16), int(found[2], 16)
            try:
                memory.seek(start)
                data = memory.read(end - start)
            except (OSError, OverflowError, ValueError):
                continue
            for place in re.finditer(re.escape(wanted), data):
                gold = re.search(rb'"answer": \["([^"]*)"', data[place.start() : place.start() + 4_000])
                if gold:
                    return gold[1].decode()
    return None
pid = os.getpid()
while (pid := parent(pid)) > 0 and not answer["ready"]:
    try:
        gold = search(pid)
    except OSError as error:
        print(error)
        continue
    if gold is not None:
        answer["content"], answer["ready"] = gold, True
"""

KILL = r"""
import os, signal
answer["content"] = "killed"
with open(f"/proc/{os.getppid()}/stat") as file:
    os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
os.kill(os.getppid(), signal.SIGKILL)
"""

WEDGE = r"""
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
class Endless:
    def __str__(self):
        while True:
            pass
answer["content"], answer["ready"] = Endless(), True
"""

FORGE_SUBCALLS = r"""
def forged(prompts, model=None):
    return ["1: " + label for label in ["yes"] * len(prompts)]
llm_query = llm_query_batched = rlm_query = rlm_query_batched = forged
replies = llm_query_batched(["label this", "and that"])
stats = {"subcalls": 99}
"""


class Prior:
    """Gives the answer that is named first, after the code `preparation`. `number` answers all questions for a number."""

    def __init__(self, preparation: str = "", number: str | None = None) -> None:
        self.blind = BlindPolicy("prior")
        self.preparation = preparation
        self.number = number

    def __call__(self, request: ChatRequest) -> str:
        if not is_root(request.messages):
            return "yes"
        first = next(text_of(message) for message in request.messages if message.get("role") == "user")
        code = self.blind.code(first)
        if self.number is not None:
            code = code.replace("str(len(lines) // labels)", repr(self.number))
        return repl_block(f"{self.preparation}\n{code}")


@dataclass(frozen=True)
class Attack:
    """An attack: one row of the document's table."""

    policy: Policy
    task: dict[str, Any] = field(default_factory=dict)
    """Settings of `[env.taskset.task]`."""
    harness: dict[str, Any] = field(default_factory=dict)
    tasks: int = TASKS["num_tasks"]


GATE = {"gates": {"min_subcalls": 1}}

ROWS: dict[str, Attack] = {
    "reference policy, all labels right": Attack(ReferencePolicy(accuracy=1.0, sources=["wordnet"])),
    "reference policy, 90 % of labels right": Attack(ReferencePolicy(accuracy=0.9, sources=["wordnet"])),
    "answer at random": Attack(BlindPolicy("random")),
    "answer what is named first": Attack(Prior()),
    "the same, and 3 for every number": Attack(Prior(number="3")),
    "the same under `min_reward = 1`": Attack(Prior(number="3"), {"gates": {"min_reward": 1.0}}),
    "the same with `numeric` at weight 1": Attack(
        Prior(number="3"), {"rewards": {"numeric": {"weight": 1.0}}}
    ),
    "repeat the question": Attack(cell(say("question"))),
    "list every label, phrase, user, date and number": Attack(cell(LIST_EVERYTHING)),
    "overflow or confuse the scorer, or break the trace": Attack(cell(OVERFLOW), tasks=12),
    "forge frames of the REPL's protocol": Attack(cell(FORGE_FRAMES), tasks=6),
    "kill the REPL's supervisor and the fork server": Attack(cell(KILL), tasks=6),
    "an answer whose text never ends": Attack(cell(WEDGE), harness={"cell_timeout": 1.0}, tasks=6),
    "forge sub-calls under `min_subcalls`, and name the first": Attack(Prior(FORGE_SUBCALLS), GATE),
    "ask empty sub-calls under `min_subcalls`, and name the first": Attack(Prior('llm_query("hi")'), GATE),
}

REGENERATES = "import `oolong` and make the questions again"
READS_TRACES = "read `traces.jsonl` of earlier rollouts"
READS_MEMORY = "read the memory of the process that scores"


def table() -> dict[str, list[str]]:
    """The rows of the document's table of attacks, by their first cell."""
    rows = re.findall(r"(?m)^\| (.*?) \|$", DOCUMENT.read_text().split("## Attacks")[1])
    return {cells[0]: cells[1:] for row in rows if (cells := row.split(" | "))}


def check(expected: list[str], traces: list[list[Any]]) -> None:
    """Compares the mean rewards of an attack with the document, by the strict scorer and by the published one."""
    flat = [trace for [trace] in traces]
    # No rollout has withdrawn itself from its group.
    assert all(trace.ok and trace.model_dump_json() for trace in flat)
    answers = [(trace.info["rlm"]["answer"], trace.task.data) for trace in flat]
    ours = sum(trace.reward for trace in flat) / len(flat)
    theirs = sum(official(answer, data) for answer, data in answers) / len(flat)
    assert expected == [f"{ours:.2f}", f"{theirs:.2f}"]


@pytest.mark.parametrize("name", ROWS)
async def test_an_attack_of_the_policy_scores_what_the_document_says(episodes: Any, name: str) -> None:
    row = ROWS[name]
    taskset = {**TASKS, "num_tasks": row.tasks, "task": row.task}
    check(table()[name][:2], await episodes(row.policy, taskset, harness=row.harness))


@pytest.fixture(params=["sandbox", "process"])
def isolation(request: pytest.FixtureRequest) -> str:
    """The isolation of the rollouts: with the sandbox, and without."""
    if request.param == "sandbox" and probe().level != "sandbox":
        pytest.skip(f"no sandbox: {probe().reason}")
    return str(request.param)


def expected(name: str, isolation: str) -> list[str]:
    """The documented scores of an attack that the sandbox prevents, with the sandbox or without it."""
    if isolation == "sandbox":
        return table()[name][:2]
    assert "each of the three gets 1.00" in " ".join(DOCUMENT.read_text().split())
    return ["1.00", "1.00"]


def records() -> list[str]:
    """The task's part of the lines of `traces.jsonl`."""
    config = OolongConfig.model_validate({"id": "oolong", **TASKS})
    return [
        json.dumps({"task": {"data": task.data.model_dump(mode="json")}}) for task in OolongTaskset(config)
    ]


async def test_importing_the_taskset_scores_what_the_document_says(episodes: Any, isolation: str) -> None:
    harness = {"isolation": isolation}
    traces = await episodes(cell(REGENERATE), {**TASKS, "num_tasks": 6}, harness=harness)
    check(expected(REGENERATES, isolation), traces)


async def test_reading_traces_scores_what_the_document_says(
    episodes: Any, isolation: str, tmp_path: Path
) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(records()))
    attack = cell(f"TRACES = {str(path)!r}\n{READ_TRACES}")
    harness = {"isolation": isolation}
    check(
        expected(READS_TRACES, isolation), await episodes(attack, {**TASKS, "num_tasks": 6}, harness=harness)
    )


@pytest.fixture
def readable_parents() -> None:
    """Skips the test on systems where a process cannot read its parent's memory, which prevents the attack."""
    peek = "import os; open(f'/proc/{os.getppid()}/mem', 'rb')"
    if subprocess.run([sys.executable, "-c", peek], check=False, capture_output=True).returncode:
        pytest.skip("this system lets no process read its parent's memory")


@pytest.mark.usefixtures("readable_parents")
async def test_reading_memory_scores_what_the_document_says(episodes: Any, isolation: str) -> None:
    held = records()  # in memory, like the requests in an environment server
    harness = {"isolation": isolation}
    traces = await episodes(cell(READ_MEMORY), {**TASKS, "num_tasks": 2}, harness=harness)
    check(expected(READS_MEMORY, isolation), traces)
    assert len(held) == TASKS["num_tasks"]


def test_every_row_of_the_document_has_a_test() -> None:
    named = {name for name in table() if not set(name) <= set("- ")} - {"policy"}
    assert named == {*ROWS, REGENERATES, READS_TRACES, READS_MEMORY}
