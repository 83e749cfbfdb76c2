"""OOLONG's optional rewards, costs among the attempts at one task, and the figures for a curriculum."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import verifiers.v1 as vf
from pydantic import ValidationError

from oolong.generator import generate
from oolong.scoring.scorers import score
from oolong.scoring.strict import nearness
from oolong.task import OolongTask
from oolong.taskset import OolongConfig, OolongTaskset
from rlm.testing import ChatRequest, repl_block
from rlm_train.group import CostsConfig
from rlm_train.rewards import GatesConfig

SMALL = {"num_tasks": 1, "sizes": [6_000], "answer_types": ["NUMERIC"]}


def load(**fields: Any) -> list[OolongTask]:
    config = OolongConfig.model_validate({"id": "oolong", "num_tasks": 6, "sizes": [6_000], **fields})
    return list(OolongTaskset(config))


def numeric_task(gold: int, **rewards: Any) -> OolongTask:
    [task] = load(**{**SMALL, "task": rewards})
    return OolongTask(task.data.model_copy(update={"answer": (str(gold),)}), task.config)


async def scored(task: OolongTask, answer: str) -> Any:
    trace: Any = vf.Trace(
        task=vf.TraceTask(type="OolongTask", data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig.model_validate({"runtime": {"type": "subprocess"}})),
    )
    trace.info["rlm"] = {"answer": answer, "stats": {"turns": 3, "subcalls": 2}}
    await task.score(trace)
    return trace


async def test_a_launch_file_sets_weights_and_gates() -> None:
    table = tomllib.loads("""
        [task]
        gates = { min_iterations = 2, min_subcalls = 1 }
        numeric_tolerance = 0.2
        rewards.correct.weight = 2.0
        rewards.numeric.weight = 0.5
        rewards.truncated = { weight = 0.1 }
    """)
    [task] = load(**{**SMALL, **table})
    right = await scored(task, task.data.answer[0])
    assert (right.reward, right.metrics["gated"]) == (2.0, 0.0)
    assert set(right.rewards) == {"correct", "numeric", "truncated"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"rewards": {"exakt": {"weight": 1}}}, "no reward 'exakt': there is correct, format, no_answer, numeric"),
        ({"rewards": {"numeric": {"weight": 1.5}}}, "'numeric' must be from 0 to 1"),
        ({"gates": {"min_subcall": 1}}, "min_subcall"),
        ({"gates": {"min_iterations": -3}}, "min_iterations"),
        ({"rewards": {"correct": {"weight": float("inf")}}}, "finite"),
        ({"numeric_tolerance": 0}, "numeric_tolerance"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_reward_settings_are_refused_when_the_file_is_read(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OolongConfig.model_validate({"id": "oolong", "task": table})


async def test_near_numbers_earn_a_share_at_any_magnitude() -> None:
    numeric = {"rewards": {"numeric": {"weight": 1.0}}}
    for gold, answer, plain, shaped in [
        (500, 500, 1.0, 1.0),
        (500, 490, 0.75**10, 0.8),
        (500, 530, 0.75**30, 0.4),
        (500, 560, 0.75**60, 0.75**60),
        (4, 5, 0.75, 0.75),
        (0, 0, 1.0, 1.0),
        (0, 1, 0.75, 0.75),
    ]:
        assert (await scored(numeric_task(gold), str(answer))).reward == pytest.approx(plain)
        assert (await scored(numeric_task(gold, **numeric), str(answer))).reward == pytest.approx(shaped)


async def test_a_wrong_number_earns_less_than_the_right_one() -> None:
    for gold, off, weight in itertools.product((1, 7, 900), (1, 2, 50), (0.3, 1.0)):
        task = numeric_task(gold, rewards={"numeric": {"weight": weight}})
        assert (await scored(task, str(gold + off))).reward < (await scored(task, str(gold))).reward == 1.0


def test_nearness_is_0_for_answers_that_are_not_numbers() -> None:
    [task] = load(**SMALL)
    data = task.data.model_copy(update={"answer": ("1000",)})
    assert nearness("Answer: 1,010.", data, 0.1) == pytest.approx(0.9)
    for text in ("about 1000", "-1000", "1000 1001 1002", "9" * 5_000, "", "nan"):
        assert nearness(text, data, 0.1) == 0.0
    [label] = load(num_tasks=1, answer_types=["LABEL"])
    assert nearness(label.data.answer[0], label.data, 0.1) == 0.0


class Attempts:
    """Each attempt gets its own script, in the order in which the attempts start."""

    def __init__(self, *scripts: list[str]) -> None:
        self.scripts = scripts
        self.begun = itertools.count()

    def __call__(self, request: ChatRequest) -> str:
        if request.is_subcall:
            return "a label"
        if request.turn == 0:
            number = next(self.begun)
        else:
            number = int(re.findall(r"# attempt (\d+)", request.messages[2]["content"])[0])
        return repl_block(f"# attempt {number}\n{self.scripts[number][request.turn]}")


def answer(text: str) -> str:
    return f'answer["content"], answer["ready"] = {text!r}, True'


def ask(count: int) -> str:
    return f'_ = llm_query_batched(["what?"] * {count})'


@pytest.fixture
def group(episodes: Any) -> Callable[..., Any]:
    [task] = load(**SMALL)
    right = answer(task.data.answer[0])

    async def group(costs: dict[str, float], **taskset: Any) -> list[Any]:
        scripts = [
            [right],
            [ask(2), right],
            [ask(8), ask(2), "1", right],
            [answer("no idea")],
        ]
        [traces] = await episodes(
            Attempts(*scripts), {**SMALL, **taskset}, id="rlm-train", attempts=4, costs=costs
        )
        return sorted(traces, key=lambda trace: (trace.metrics["exact"] == 0, trace.metrics["turns"]))

    return group


async def test_attempts_pay_no_costs_by_default(group: Any) -> None:
    traces = await group({})
    assert [trace.reward for trace in traces] == [1.0, 1.0, 1.0, 0.0]
    assert {name for trace in traces for name in trace.rewards} == {"correct"}
    assert {trace.metrics["group_correct"] for trace in traces} == {0.75}


async def test_right_attempts_pay_for_exceeding_the_cheapest_one(group: Any) -> None:
    traces = await group({"turns": 0.2, "subcalls": 0.1})
    assert [trace.metrics["subcalls"] for trace in traces] == [0, 2, 10, 0]
    turns = [0, 1 / 4, 3 / 4]
    subcalls = [0, 2 / 10, 10 / 10]
    expected = [1 - 0.2 * t - 0.1 * s for t, s in zip(turns, subcalls, strict=True)]
    assert [trace.reward for trace in traces] == pytest.approx([*expected, 0.0])
    assert traces[3].rewards["turns_cost"].score == 0.0


async def test_an_attempt_that_missed_a_gate_is_not_counted_as_right(group: Any) -> None:
    traces = await group({"turns": 0.2}, task={"gates": {"min_subcalls": 1}})
    assert [trace.reward for trace in traces] == pytest.approx([0.0, 1.0, 1 - 0.2 * 2 / 4, 0.0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"costs": {"tokens": 0.1}}, "tokens"),
        ({"costs": {"turns": -0.1}}, "turns"),
        ({"costs": {"turns": float("nan")}}, "turns"),
        ({"costs": {"turns": 0.6, "subcalls": 0.4}}, "add up to less than 1"),
        ({"attempts": 1}, "attempts"),
    ],
    ids=str,
)
def test_bad_costs_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        vf.resolve_env_config({"id": "rlm-train", "taskset": {"id": "oolong"}, **fields})


def test_costs_are_refused_outside_of_rlm_group() -> None:
    with pytest.raises(ValidationError, match="costs"):
        vf.resolve_env_config({"taskset": {"id": "oolong"}, "costs": {"turns": 0.1}})


# Figures for a curriculum


async def test_a_task_records_metrics_of_its_difficulty() -> None:
    for task in load(sizes=[6_000, 12_000]):
        data = task.data
        assert data.num_labels == len(data.labels) > 1
        assert data.category == f"{data.task_group}: {data.answer_type.lower().replace('_', '-')}"
        trace = await scored(task, "")
        assert trace.metrics["context_size"] == data.context_size
        assert trace.metrics["num_labels"] == data.num_labels
        assert trace.metrics["n_rows"] == data.n_rows


def test_tasks_can_be_sorted_by_size() -> None:
    mixed = load(sizes=[12_000, 6_000], num_tasks=8)
    ordered = load(sizes=[12_000, 6_000], num_tasks=8, order="short_first")
    sizes = [task.data.context_size for task in ordered]
    assert sizes == sorted(sizes)
    assert {task.key for task in ordered} == {task.key for task in mixed}
    with pytest.raises(ValidationError, match="order"):
        load(order="hard_first")


def test_keys_are_unique_and_do_not_depend_on_the_order() -> None:
    keys = [task.key for task in load(num_tasks=12, questions_per_window=3)]
    assert len(set(keys)) == len(keys)
    assert [task.key for task in load(num_tasks=6, questions_per_window=3)] == keys[:6]


# The document

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "rewards.md").read_text()


def test_the_documents_example_files_are_valid() -> None:
    blocks = [tomllib.loads(block) for block in re.findall(r"(?ms)^```toml\n(.*?)^```$", DOCUMENT)]
    assert len(blocks) == 3
    trained = [block["orchestrator"]["train"]["source"] for block in blocks if "orchestrator" in block]
    for env in [
        *(block["env"] for block in blocks if "env" in block),
        *(source["env"] for sources in trained for source in sources),
    ]:
        config = vf.resolve_env_config(env)
        assert isinstance(config.taskset, OolongConfig)


def test_the_documents_curriculum_is_one_of_prime_rl() -> None:
    schema = json.loads((ROOT / "tests" / "configs" / "prime_rl.schema.json").read_text())
    checker = jsonschema.Draft202012Validator({"$ref": "#/$defs/CurriculumConfig", "$defs": schema["$defs"]})
    [source] = re.findall(r"(?ms)^```toml\n(\[\[orch.*?)^```$", DOCUMENT)
    curriculum = tomllib.loads(source)["orchestrator"]["train"]["source"][-1]["curriculum"]
    checker.validate(curriculum)
    assert not checker.is_valid({**curriculum, "gate": {}})


def test_the_document_names_every_entry_and_gate() -> None:
    names = [*OolongTask._names("reward"), *GatesConfig.model_fields]
    names += [f"{name}_cost" for name in CostsConfig.model_fields]
    assert [name for name in names if f"`{name}`" not in DOCUMENT] == []


def test_the_document_has_the_scores_of_constant_answers() -> None:
    """The scores are of NUMERIC questions, by the size of the context."""
    text = " ".join(DOCUMENT.split("## Attacks")[1].split())
    said = re.findall(r"([\d.]+) (?:of the NUMERIC questions )?at ([\d,]+)", text)
    assert len(said) == 3
    for best, size in said:
        questions = generate(
            80, sizes=(int(size.replace(",", "")),), split="eval", seed=11, answer_types=["NUMERIC"]
        )
        scores = [sum(score(str(guess), example) for example in questions) for guess in range(30)]
        assert f"{max(scores) / len(questions):.2f}" == best
