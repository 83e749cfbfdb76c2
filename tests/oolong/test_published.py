"""The published rows, read from small parquet files with the published columns."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oolong.example import Example
from oolong.generator import generate
from oolong.official_questions import Compat
from oolong.published import labels_in, load_published, parse_answer
from oolong.published_rows import PublishedRow
from oolong.scoring.scorers import score
from oolong.sources.source import SourceError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Moves the library's cache to a folder of the test, and keeps the library offline."""
    datasets: Any = importlib.import_module("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub: Any = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def published_answer(example: Example) -> str:
    if example.answer_type == "NUMERIC" or example.answer_type == "USER":
        return f"[{example.answer[0]}]"
    if example.answer_type == "DATE":
        year, month, day = map(int, example.answer[0].split("-"))
        return f"[datetime.date({year}, {month}, {day})]"
    return repr(list(example.answer))


@pytest.fixture
def synth(tmp_path: Path) -> tuple[Path, list[Example]]:
    """A file in the published form, and the examples that it was made from."""
    examples = generate(
        25, sizes=(120,), unit="rows", mode="official", split="all", seed=1, compat=Compat.of(())
    )
    rows = [
        {
            "id": 13_000_200 + i,
            "context_len": 8_192 if i % 2 else 1_024,
            "dataset": "wordnet",
            "context_window_text": example.materialise(),
            "context_window_text_with_labels": example.materialise_labelled(),
            "question": example.question,
            "task_group": example.task_group,
            "task": f"TASK_TYPE.{example.task_type}",
            "answer": published_answer(example),
            "answer_type": f"ANSWER_TYPE.{example.answer_type}",
            "input_subset": str(example.input_subset),
            "num_labels": len(example.labels),
            "context_window_id": 10_000,
        }
        for i, example in enumerate(examples)
    ]
    return write_parquet(tmp_path / "synth.parquet", rows), examples


def test_published_rows_become_examples_of_our_form(synth: tuple[Path, list[Example]]) -> None:
    path, originals = synth
    examples = load_published(str(path))
    assert len(examples) == len(originals) == 25
    for example, original in zip(examples, originals, strict=True):
        for field in (
            "question",
            "answer",
            "answer_type",
            "task_type",
            "task_group",
            "labels",
            "n_rows",
            "context_size",
            "context_sha256",
        ):
            assert getattr(example, field) == getattr(original, field)
        assert example.mode == "published"
        assert example.input_subset == original.input_subset
        assert score(f"Answer: {example.answer[0]}", example) == 1.0
        assert Example.from_dict(json.loads(json.dumps(example.to_dict()))) == example
        assert example.materialise() == original.materialise()
        assert example.materialise_labelled() == original.materialise_labelled()
    assert isinstance(examples[3].context, PublishedRow)
    assert examples[3].context.row == 3


def test_rows_can_be_chosen(synth: tuple[Path, list[Example]]) -> None:
    path, _ = synth
    long = load_published(str(path), min_context_len=1_025, max_context_len=131_072)
    assert [example.id for example in long] == [str(13_000_200 + i) for i in range(1, 25, 2)]
    assert len(load_published(str(path), limit=3)) == 3
    assert load_published(str(path), sources=("spam",)) == []
    numbers = load_published(str(path), answer_types=("NUMERIC",))
    assert numbers
    assert {example.answer_type for example in numbers} == {"NUMERIC"}


def test_a_folder_of_parquet_files_is_a_data_set(synth: tuple[Path, list[Example]], tmp_path: Path) -> None:
    path, originals = synth
    folder = tmp_path / "folder" / "data"
    folder.mkdir(parents=True)
    path.rename(folder / "validation-00000-of-00001.parquet")
    examples = load_published(str(tmp_path / "folder"), split="validation", limit=2)
    assert [example.question for example in examples] == [example.question for example in originals[:2]]


def test_rows_of_oolong_real_become_examples(tmp_path: Path) -> None:
    common = {
        "context_window_id": "w1", "context_window_text": "[START OF EPISODE]\nLaura: hi\n[END OF EPISODE]", "episodes": "[1]",
        "campaign": "campaign2",
    }  # fmt: skip
    rows = [
        {"id": "a", "question": "Total rolls?", "answer": "84", "question_type": "singledoc_rolls", **common},
        {
            "id": "b",
            "question": "First spell?",
            "answer": "Fireball",
            "question_type": "singledoc_spells",
            **common,
        },
        {
            "id": "c",
            "question": "Spells?",
            "answer": "Fireball, Mage Hand",
            "question_type": "multidoc_spells",
            **common,
        },
    ]
    examples = load_published(str(write_parquet(tmp_path / "real.parquet", rows)))
    assert [example.answer_type for example in examples] == ["NUMERIC", "TEXT", "LIST"]
    assert examples[0].materialise() == common["context_window_text"]
    assert score(r"\boxed{84}", examples[0]) == score(r"\boxed{84}", examples[0], "official") == 1.0
    assert score(r"\boxed{mage hand, fireball}", examples[2]) == 1.0
    with pytest.raises(SourceError, match="no column 'context_window_text_with_labels'"):
        examples[0].materialise_labelled()


def test_unreadable_data_sets_and_rows_are_named_in_errors(
    tmp_path: Path, synth: tuple[Path, list[Example]]
) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.parquet, split validation, cannot be read"):
        load_published(str(tmp_path / "nowhere.parquet"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(SourceError, match=r"broken\.parquet, split validation, cannot be read"):
        load_published(str(broken))
    other = write_parquet(tmp_path / "other.parquet", [{"text": "a", "answer_type": "LABEL"}])
    with pytest.raises(SourceError, match="no column 'id'; it has answer_type, text"):
        load_published(str(other))
    path, _ = synth
    with pytest.raises(SourceError, match="no row 99, it has 25"):
        PublishedRow(str(path), "validation", 99).text()


def test_a_hub_that_cannot_be_reached_is_a_clear_error() -> None:
    with pytest.raises(
        SourceError,
        match=r"oolongbench/oolong-synth, split validation, cannot be read: .*needs the network once",
    ):
        load_published()


def test_a_bad_answer_names_its_row(tmp_path: Path, synth: tuple[Path, list[Example]]) -> None:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    rows = parquet.read_table(synth[0]).to_pylist()[:3]
    rows[2]["answer"] = "spam"
    path = write_parquet(tmp_path / "bad.parquet", rows)
    with pytest.raises(SourceError, match=r"bad\.parquet, split validation, row 2: "):
        load_published(str(path))


def test_answers_are_parsed() -> None:
    assert parse_answer("['spam']", "LABEL") == ("spam",)
    assert parse_answer("['a', 'b']", "LABEL") == ("a", "b")
    assert parse_answer("[12]", "NUMERIC") == ("12",)
    assert parse_answer("[datetime.date(2023, 1, 2)]", "DATE") == ("2023-01-02",)
    for bad in ("[]", "12", "spam", "[__import__('os')]"):
        with pytest.raises((ValueError, SyntaxError)):
            parse_answer(bad, "LABEL")


def test_labels_are_read_from_published_headers() -> None:
    assert labels_in("can be described as one of 2 categories: 'human being', 'entity'.\n") == (
        "human being",
        "entity",
    )
    assert labels_in("one of the following 2 types of relationships: 'a', 'b'.") == ("a", "b")
    assert labels_in("no list at all") == ()
