"""The taskset: its settings, the data of its tasks, their scores, and the check of their answers."""

from __future__ import annotations

import csv
import importlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf
from pydantic import ValidationError

import oolong
from oolong.generator import generate
from oolong.official_questions import Compat
from oolong.task import OolongData, OolongTask
from oolong.taskset import CompatConfig, OolongConfig, OolongTaskset


def config(**settings: Any) -> OolongConfig:
    return OolongConfig.model_validate({"id": "oolong", "num_tasks": 6, "sizes": [6_000], **settings})


def load(**settings: Any) -> list[OolongTask]:
    return list(OolongTaskset(config(**settings)))


def rollout(task: OolongTask, answer: Any = None) -> Any:
    """A trace with this answer of an RLM; None: an empty trace."""
    trace = vf.Trace(
        task=vf.TraceTask(type="OolongTask", data=task.data),
        agent=vf.AgentInfo(config=vf.AgentConfig.model_validate({"runtime": {"type": "subprocess"}})),
    )
    if answer is not None:
        trace.info["rlm"] = {"answer": answer}
    return trace


async def scored(task: OolongTask, answer: Any = None) -> Any:
    trace = rollout(task, answer)
    await task.score(trace)
    return trace


@pytest.fixture(scope="module")
def tasks() -> list[OolongTask]:
    return load(num_tasks=24)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "queue"])
        for number in range(400):
            writer.writerow(
                [
                    f"ticket {number} about a {'bill' if number % 3 else 'bug'}",
                    "billing" if number % 3 else "bugs",
                ]
            )
    return path


def test_the_package_alone_is_an_environment() -> None:
    names = [getattr(oolong, name) for name in oolong.__all__]
    assert [issubclass(item, vf.Taskset) for item in names] == [True, False]
    assert [issubclass(item, vf.Harness) for item in names] == [False, True]
    loaders = importlib.import_module("verifiers.v1.utils.loaders")
    assert loaders.default_harness_id("oolong") == "oolong"
    assert loaders.taskset_class("oolong") is OolongTaskset


def test_a_task_holds_no_context_and_makes_it_again_after_json(tasks: list[OolongTask]) -> None:
    for task in tasks:
        data = task.data
        assert len(data.model_dump_json()) < 3_000
        again = OolongData.model_validate_json(data.model_dump_json())
        assert again == data
        context = again.build_context()
        assert context.size == data.context_size == len(context.value)
        assert 4_000 < data.context_size <= 6_000
        assert data.materialise() == context.value


def test_task_data_of_an_earlier_trace_is_read() -> None:
    """Its context lacks the sizes that are None."""
    digest = "ea4f9ee3055373d39420aeac01b807942cde244607964cc02471cc8e9938c31e"
    earlier = {
        "id": "wordnet-eval-fixed-4-00000-ea4f9ee3", "name": "timeline numeric 2,921 chars",
        "prompt": "Consider all lines. In how many ...?", "category": "timeline: numeric", "scorer": "strict",
        "context_kind": "str", "context_size": 2921, "context_sha256": digest, "answer": ["0"], "answer_type": "NUMERIC",
        "task_group": "timeline", "task_type": "MOST_FREQ", "source": "wordnet", "split": "eval", "mode": "fixed", "seed": 4,
        "labels": ["food", "animal"], "num_labels": 2, "input_subset": False, "n_rows": 19, "compat": [],
        "context": {
            "kind": "window", "source": "wordnet", "split": "eval", "seed": 32000000, "rows": 19, "skew": [2, 6],
            "first_day": "2022-02-16", "last_day": "2025-06-21", "layout": "own",
        },
    }  # fmt: skip
    data = OolongData.model_validate(earlier)
    assert (data.build_context().sha256, data.question) == (digest, earlier["prompt"])
    assert {
        name: value for name, value in data.model_dump(mode="json").items() if name in earlier
    }.keys() == earlier.keys()


def test_questions_are_spread_over_groups_and_answer_types(tasks: list[OolongTask]) -> None:
    assert {task.data.task_group for task in tasks} == {"counting", "user", "timeline"}
    assert {task.data.answer_type for task in tasks} == {
        "LABEL",
        "NUMERIC",
        "COMPARISON",
        "USER",
        "DATE",
        "MONTH_YEAR",
    }
    assert all(task.data.category and task.data.category.startswith(task.data.task_group) for task in tasks)


def test_equal_settings_give_equal_tasks(tasks: list[OolongTask]) -> None:
    assert [task.hash for task in load(num_tasks=24)] == [task.hash for task in tasks]
    assert [task.hash for task in load(num_tasks=6)] == [task.hash for task in tasks[:6]]
    assert {task.data.id for task in load(seed=1)}.isdisjoint(task.data.id for task in tasks)


def test_train_and_eval_share_no_line() -> None:
    lines = {
        split: {
            line.partition("|| Instance: ")[2]
            for task in load(split=split)
            for line in task.data.materialise().splitlines()
            if "|| Instance: " in line
        }
        for split in ("train", "eval")
    }
    assert lines["train"]
    assert lines["train"].isdisjoint(lines["eval"])


async def test_right_answers_score_one_and_others_less(tasks: list[OolongTask]) -> None:
    for task in tasks:
        for answer in task.data.answer:
            trace = await scored(task, answer)
            assert trace.reward == 1.0
            assert trace.metrics["exact"] == 1.0
        assert (await scored(task, "no idea")).reward == 0.0
        assert (await scored(task, " ".join(task.data.labels))).reward == 0.0


@pytest.mark.parametrize("scorer", ["strict", "official"])
async def test_a_rollout_without_an_answer_scores_0(scorer: str) -> None:
    for task in load(num_tasks=12, scorer=scorer):
        for answer in (None, "", 0, ["x"]):
            assert (await scored(task, answer)).reward == 0.0


async def test_a_near_number_scores_a_part_and_is_not_exact(tasks: list[OolongTask]) -> None:
    task = next(task for task in tasks if task.data.answer_type == "NUMERIC")
    trace = await scored(task, str(int(task.data.answer[0]) + 1))
    assert trace.reward == 0.75
    assert trace.metrics["exact"] == 0.0


async def test_a_reward_reads_only_the_answer(tasks: list[OolongTask]) -> None:
    trace = rollout(tasks[0], "no idea")
    trace.info["judge"] = trace.info["answer"] = tasks[0].data.answer[0]
    await tasks[0].score(trace)
    assert trace.reward == 0.0


async def test_the_scorer_is_a_setting() -> None:
    task = next(t for t in load(num_tasks=12, scorer="official") if t.data.answer_type == "NUMERIC")
    assert (await scored(task, f"I think that it is this number: {task.data.answer[0]}")).reward == 1.0
    strict = OolongTask(task.data.model_copy(update={"scorer": "strict"}))
    assert (await scored(strict, f"I think that it is this number: {task.data.answer[0]}")).reward == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mode": "official"},
        {"mode": "official", "compat": {field.name: False for field in fields(Compat)}, "scorer": "official"},
        {"unit": "rows", "sizes": [40, 90]},
        {"unit": "tokens", "sizes": [2_000], "split": "all"},
        {"questions_per_window": 3},
    ],
    ids=str,
)
async def test_validation_counts_the_answers_again(settings: dict[str, Any]) -> None:
    for task in load(num_tasks=12, **settings):
        assert await task.validate(runtime=None) is True  # type: ignore[arg-type]


async def test_a_wrong_answer_does_not_validate(tasks: list[OolongTask]) -> None:
    task = next(task for task in tasks if task.data.answer_type == "NUMERIC")
    wrong = OolongTask(task.data.model_copy(update={"answer": (str(int(task.data.answer[0]) + 1),)}))
    with pytest.raises(ValueError, match="has the answer"):
        await wrong.validate(runtime=None)  # type: ignore[arg-type]


def test_questions_can_be_chosen() -> None:
    tasks = load(task_groups=["user"], answer_types=["USER", "LABEL"])
    assert {task.data.task_group for task in tasks} == {"user"}
    assert {task.data.answer_type for task in tasks} == {"USER", "LABEL"}


def test_the_source_can_be_a_file(labelled: Path) -> None:
    file = {"text_column": "body", "label_column": "queue", "items": "tickets"}
    [task] = load(source=str(labelled), file=file, num_tasks=1)
    assert task.data.source.startswith("tickets-")
    text = OolongData.model_validate_json(task.data.model_dump_json()).materialise()
    assert "tickets" in text
    assert set(task.data.labels) == {"billing", "bugs"}


def test_published_rows_become_tasks(tmp_path: Path) -> None:
    example = generate(1, answer_types=["NUMERIC"], mode="official")[0]
    row = {
        "id": 7,
        "context_len": 4096,
        "dataset": "trec_coarse",
        "context_window_text": example.materialise(),
        "question": example.question,
        "task_group": "counting",
        "task": "TASK_TYPE.NUMERIC_ONE_CLASS",
        "answer": f"[{example.answer[0]}]",
        "answer_type": "ANSWER_TYPE.NUMERIC",
        "input_subset": "False",
        "num_labels": 6,
        "context_window_id": 1,
    }
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist([row, {**row, "dataset": "spam"}]), tmp_path / "rows.parquet")
    published = {"sources": ["trec_coarse"], "max_context_len": 4096}
    [task] = load(
        mode="published", split="validation", source=str(tmp_path / "rows.parquet"), published=published
    )
    assert task.data.answer == example.answer
    assert task.data.task_type == "NUMERIC_ONE_CLASS"
    again = OolongData.model_validate_json(task.data.model_dump_json())
    assert again.build_context().value == example.materialise()


async def test_published_rows_are_not_validated(tmp_path: Path, tasks: list[OolongTask]) -> None:
    published = OolongTask(tasks[0].data.model_copy(update={"mode": "published"}))
    assert await published.validate(runtime=None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sorce": "wordnet"}, "sorce"),
        ({"source": "wordnett"}, "no source 'wordnett'"),
        ({"source": "nowhere/data.csv"}, "nowhere/data.csv cannot be read"),
        ({"source": "data.xlsx/"}, "a file of labelled text must end in"),
        ({"source": "wordnet", "file": {"text_column": "body"}}, "'wordnet' is not"),
        ({"file": {"text_colum": "body"}}, "text_colum"),
        ({"split": "test"}, "has the splits"),
        ({"mode": "published"}, '"validation" and "test"'),
        ({"mode": "published", "split": "test", "task_groups": ["user"]}, "task_groups"),
        ({"mode": "published", "split": "test", "questions_per_window": 2}, "questions_per_window"),
        ({"mode": "offical"}, "mode"),
        ({"scorer": "lenient"}, "scorer"),
        ({"sizes": []}, "sizes"),
        ({"sizes": [0]}, "sizes must be numbers of chars"),
        ({"num_tasks": 0}, "num_tasks"),
        ({"task_groups": ["users"]}, "task_groups"),
        ({"answer_types": ["LIST"]}, "LIST is for mode"),
        ({"compat": {"first25": False}}, 'compat is for mode "official"'),
        ({"mode": "official", "compat": {"first_25": False}}, "first_25"),
        ({"published": {"sources": ["spam"]}}, 'published is for mode "published"'),
    ],
    ids=str,
)
def test_invalid_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**settings)


def test_a_source_that_is_not_fetched_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLM_OOLONG_DATA", str(tmp_path))
    with pytest.raises(ValidationError, match="make oolong-sources"):
        config(source="trec_coarse")


def test_a_file_without_labels_is_refused(labelled: Path) -> None:
    with pytest.raises(ValidationError, match="no column 'label'"):
        config(source=str(labelled), file={"text_column": "body"})


def test_contexts_too_small_to_ask_about_are_refused() -> None:
    with pytest.raises(ValueError, match=r"choose a larger size|no window of"):
        load(sizes=[100])


def test_a_missing_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load(mode="published", split="validation", source=str(tmp_path / "none.parquet"))


def test_each_known_defect_is_a_setting() -> None:
    assert list(CompatConfig.model_fields) == [field.name for field in fields(Compat)]
    task = load(mode="official", num_tasks=1, compat={"first25": False})[0]
    assert "first25" not in task.data.compat
    assert "month_year_bug" in task.data.compat


def test_settings_survive_a_trip_through_json() -> None:
    before = config(mode="official", compat={"first25": False}, answer_types=["LABEL"])
    assert OolongConfig.model_validate(json.loads(before.model_dump_json())) == before
