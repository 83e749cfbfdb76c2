"""Windows: their layout, their size, and their equality across processes and Python versions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from oolong import official_wording
from oolong.example import Example, text_sha256
from oolong.generator import generate
from oolong.sources.catalog import open_source
from oolong.sources.source import SourceError
from oolong.window import build, resolve
from oolong.window_spec import WindowSpec
from rlm_train.context_hash import ContextMismatchError

LINE = re.compile(r"Date: [A-Z][a-z]{2} \d\d, \d{4} \|\| User: \d{5} \|\| Instance: .+")


def write_messages(tmp_path: Path, n: int = 400) -> str:
    path = tmp_path / "messages.csv"
    path.write_text("text,label\n" + "".join(f"message {i},{'ham' if i % 3 else 'spam'}\n" for i in range(n)))
    return str(path)


def test_the_text_is_header_lines_footer() -> None:
    window = build(WindowSpec(rows=50, seed=4))
    header, lines, footer = (
        window.text.partition("Date: ")[0],
        window.text.split("\n")[3:-4],
        window.text.split("\n")[-4:],
    )
    assert len(lines) == 50
    assert all(LINE.fullmatch(line) for line in lines)
    assert header.startswith("Below are 50 dictionary definitions of nouns, one per line")
    assert footer[1].startswith("Above are 50 dictionary definitions of nouns")
    assert all(f"'{label}'" in header for label in window.labels)


def test_the_official_layout_is_the_published_one(tmp_path: Path) -> None:
    window = build(WindowSpec(write_messages(tmp_path), "all", rows=20, layout="official"))
    paragraph = (
        "You will be asked to answer questions about the aggregate label statistics across all 20 examples in this dataset. "
        "Do not try to guess, estimate, or approximate the result. Calculate the exact answer given these datapoints."
    )
    lines = window.text.split("\n")
    assert lines[0].startswith("The following lines contain 20 texts, one per line.")
    assert lines[1:4] == ["", paragraph, ""]
    assert all(LINE.fullmatch(line) for line in lines[4:24])
    assert lines[24].startswith("Recall: the preceding lines contain 20 texts, one per line.")
    assert lines[25:] == ["", paragraph, "", ""]


def test_published_descriptions_and_budgets() -> None:
    described = official_wording.SPECIFIC_TEXT["trec_coarse"].format(k=2, labels="'a', 'b'")
    assert described == (
        "general-knowledge questions, one per line. Each question has an answer that can be described as one of 2 categories: "
        "'a', 'b'."
    )
    powers = {10: 14, 13: 188, 15: 787, 16: 1_585, 17: 3_182, 20: 25_531, 22: 102_158}
    assert {power: official_wording.rows_for_tokens("trec_coarse", 2**power) for power in powers} == powers
    powers = {10: 10, 13: 129, 15: 539, 16: 1_085, 17: 2_177, 20: 17_469, 22: 69_898}
    assert {power: official_wording.rows_for_tokens("spam", 2**power) for power in powers} == powers
    assert official_wording.rows_for_tokens("wordnet", 1024) is None


def test_the_labelled_text_is_the_text_with_the_right_labels() -> None:
    window = build(WindowSpec(rows=80, seed=1))
    pairs = list(zip(window.text.split("\n"), window.text_with_labels.split("\n"), strict=True))
    labelled = [(plain, full) for plain, full in pairs if plain.startswith("Date: ")]
    assert len(labelled) == 80
    for plain, full in labelled:
        text = plain.split(" || Instance: ")[1]
        assert full == f"{plain} || Label: {window.source.label_of(text)}"


@pytest.mark.parametrize("chars", [2_000, 8_000, 33_333, 130_000])
def test_sizes_in_characters_are_upper_bounds_and_nearly_reached(chars: int) -> None:
    for seed in range(6):
        spec = resolve(WindowSpec(chars=chars, seed=seed))
        assert spec.chars is None
        length = len(build(spec).text)
        assert chars - 400 <= length <= chars


def test_sizes_in_tokens_are_estimated() -> None:
    length = len(build(resolve(WindowSpec(tokens=10_000))).text)
    assert 25_000 < length <= 27_000


def test_a_window_that_cannot_hold_a_line_is_refused() -> None:
    with pytest.raises(ValueError, match="no window of wordnet fits in 300 characters"):
        resolve(WindowSpec(chars=300))


def test_lines_repeat_only_when_their_label_has_no_more(tmp_path: Path) -> None:
    window = build(WindowSpec(rows=1_000, split="eval", seed=2))
    texts = [entry.text for entry in window.entries]
    assert len(set(texts)) == len(texts)
    few = build(WindowSpec(write_messages(tmp_path, 40), "all", rows=200))
    counts = [
        [entry.text for entry in few.entries].count(text) for text in {entry.text for entry in few.entries}
    ]
    assert len(few.entries) == 200
    assert max(counts) > 1


@pytest.mark.parametrize("layout", ["own", "official"])
def test_a_window_of_few_lines_has_exactly_that_number(layout: Literal["own", "official"]) -> None:
    for rows in range(1, 20):
        for seed in range(20):
            assert len(build(WindowSpec(rows=rows, seed=seed, layout=layout)).entries) == rows


def test_most_lines_belong_to_common_users() -> None:
    window = build(WindowSpec(rows=3_000))
    users = {entry.user for entry in window.entries}
    assert all(10_000 <= user <= 99_999 for user in users)
    assert 0.25 < len(users) / 3_000 < 0.35


def test_dates_stay_within_their_bounds() -> None:
    window = build(WindowSpec(rows=500, first_day="2024-02-28", last_day="2024-03-01"))
    assert sorted({entry.day.isoformat() for entry in window.entries}) == [
        "2024-02-28",
        "2024-02-29",
        "2024-03-01",
    ]


def test_train_windows_hold_no_eval_text() -> None:
    held_out = {row.text for row in open_source("wordnet").rows("eval")}
    for seed in range(3):
        assert not held_out & {entry.text for entry in build(WindowSpec(rows=500, seed=seed)).entries}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of"),
        ({"rows": 3, "chars": 4}, "exactly one of"),
        ({"rows": 0}, "at least 1"),
        ({"rows": 10**7}, "at most 500,000"),
        ({"rows": 1, "skew": (6, 2)}, "skew"),
        ({"rows": 1, "first_day": "2025-01-01", "last_day": "2024-01-01"}, "is after"),
        ({"rows": 1, "first_day": "yesterday"}, "isoformat"),
        ({"rows": 1, "layout": "fancy"}, "no layout 'fancy'"),
    ],
)
def test_invalid_specs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSpec(**fields)


# Equal in every process

GOLDEN = "02dd5ea5"
"""Output of `DESCRIBE` under Python 3.11.7, 3.12.1 and 3.13.0."""

DESCRIBE = """
import hashlib, json
from oolong.generator import generate
digest = hashlib.sha256()
for arguments in ({"n": 24, "sizes": (4000, 20000), "seed": 3}, {"n": 30, "mode": "official", "sizes": (3000,), "seed": 5}):
    for example in generate(**arguments):
        digest.update(json.dumps(example.to_dict(), sort_keys=True).encode())
print(digest.hexdigest()[:8])
"""


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_examples_are_the_same_in_every_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", DESCRIBE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == GOLDEN


def test_an_example_sent_as_json_gives_the_same_context_in_another_process(tmp_path: Path) -> None:
    (example,) = generate(1, source=write_messages(tmp_path), sizes=(6_000,), seed=9)
    described = json.dumps(example.to_dict())
    assert len(described) < 3_000
    assert Example.from_dict(json.loads(described)) == example
    code = (
        "import json, sys, hashlib; from oolong.example import Example\n"
        "text = Example.from_dict(json.load(sys.stdin)).materialise()\n"
        "print(len(text), hashlib.sha256(text.encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=described,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path.parent,
    )
    assert done.stdout.split() == [str(example.context_size), example.context_sha256]


def test_a_changed_source_is_an_error(tmp_path: Path) -> None:
    name = write_messages(tmp_path)
    (example,) = generate(1, source=name, sizes=(6_000,))
    assert text_sha256(example.materialise()) == example.context_sha256
    assert isinstance(example.context, WindowSpec)
    with pytest.raises(ValueError, match="holds other text than when this window was described"):
        build(replace(example.context, source_sha256="0" * 64))
    with pytest.raises(ContextMismatchError, match="the task records 000000000000"):
        replace(example, context_sha256="0" * 64).materialise()
    with pytest.raises(SourceError, match="cannot be read"):
        replace(example, context=replace(example.context, source=str(tmp_path / "gone.csv"))).materialise()


def test_contexts_of_unknown_kind_or_fields_are_refused() -> None:
    described = generate(1)[0].to_dict()
    with pytest.raises(ValueError, match="no kind of context 'picture'"):
        Example.from_dict({**described, "context": {"kind": "picture"}})
    with pytest.raises(ValueError, match="no field 'rowz'"):
        Example.from_dict({**described, "context": {"kind": "window", "rowz": 3}})
