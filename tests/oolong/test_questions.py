"""Questions of mode "fixed": right answers, even spread, ties, and nothing to guess without reading."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oolong.example import Example
from oolong.generator import generate
from oolong.gold_check import GoldError, answers, parse, verify
from oolong.policies.reading import read
from oolong.questions import ANSWER_TYPES, CELLS


def make_csv(tmp_path: Path, labels: tuple[str, ...], n: int = 300) -> str:
    path = tmp_path / f"{len(labels)}.csv"
    path.write_text(
        "text,label\n" + "".join(f"text number {i},{labels[i % len(labels)]}\n" for i in range(n))
    )
    return str(path)


@pytest.mark.parametrize("seed", range(4))
def test_recorded_answers_equal_those_of_plain_counting(seed: int) -> None:
    for example in generate(72, sizes=(3_000, 8_000, 20_000), seed=seed):
        verify(example)


@pytest.mark.parametrize("labels", [("yes", "no"), ("a b", "c/d", "E", "f-1", "ü")])
def test_recorded_answers_are_right_for_any_labels(tmp_path: Path, labels: tuple[str, ...]) -> None:
    source = make_csv(tmp_path, labels)
    for seed in range(3):
        for example in generate(48, source=source, sizes=(40, 90, 200), unit="rows", seed=seed):
            verify(example)


def test_recorded_answers_are_right_in_large_windows() -> None:
    for example in generate(24, sizes=(130_000,), seed=11, split="eval", questions_per_window=8):
        verify(example)


def test_the_check_finds_wrong_answers_and_texts() -> None:
    examples = {example.answer_type: example for example in generate(24, seed=5)}
    assert set(examples) == set(ANSWER_TYPES)
    wrong = {
        "LABEL": "granite",
        "NUMERIC": "100000",
        "COMPARISON": "more or less",
        "USER": "1",
        "DATE": "2000-01-01",
        "MONTH_YEAR": "May 1999",
    }
    for answer_type, example in examples.items():
        with pytest.raises(GoldError, match="has the answer"):
            verify(replace(example, answer=(wrong[answer_type],)))
        with pytest.raises(GoldError, match="has the answer"):
            verify(replace(example, answer=(*example.answer, wrong[answer_type])))
    example = examples["LABEL"]
    with pytest.raises(GoldError, match="characters"):
        verify(replace(example, context_size=example.context_size + 1))
    with pytest.raises(GoldError, match="lines"):
        verify(replace(example, n_rows=example.n_rows + 1))
    with pytest.raises(GoldError, match="empty, or one occurs twice"):
        verify(replace(example, answer=()))
    with pytest.raises(GoldError, match="no known form"):
        verify(replace(example, prompt="Consider all lines. Why?"))
    with pytest.raises(GoldError, match="not the text with labels"):
        verify(example, example.materialise_labelled().replace("User: 1", "User: 2", 1))


def test_the_check_agrees_with_answers_worked_out_by_hand() -> None:
    lines = parse(
        "Header\n"
        "Date: Mar 01, 2023 || User: 1 || Instance: a || Label: x\n"
        "Date: Mar 31, 2023 || User: 1 || Instance: b || Label: y\n"
        "Date: Apr 02, 2023 || User: 2 || Instance: c || Label: in || Label: y\n"
        "Date: Mar 01, 2024 || User: 3 || Instance: d || Label: y\n"
    )

    def right(question: str) -> list[str]:
        return answers(question, lines, ["x", "y", "z"])

    assert [line.label for line in lines] == ["x", "y", "y", "y"]
    assert right("Consider all lines. How many of these lines have the label 'y'? ...") == ["3"]
    assert right(
        "Consider only the lines dated in March, whatever the year. How many of these lines have the label 'y'?"
    ) == ["2"]
    assert right(
        "Consider only the lines of the users 1, 3. How many of these lines have the label 'y'?"
    ) == ["2"]
    in_range = "Consider only the lines dated from Mar 31, 2023 to Apr 02, 2023, both days included."
    assert right(f"{in_range} How many of these lines have the label 'y'?") == ["2"]
    assert right("Consider all lines. Which user has the most of these lines? ...") == ["1"]
    assert right("Consider all lines. Which user has the second most of these lines? ...") == ["2", "3"]
    least = "Consider all lines. Which label is the least frequent ... one of these labels: 'x', 'y', 'z'."
    assert right(least) == ["z"]
    assert right("Consider all lines. How many different dates are on exactly 1 of these lines each?") == [
        "4"
    ]
    first = "Consider all lines. Which is the first month with more lines of the label 'y' than of the label 'x'? ..."
    assert right(first) == ["April 2023"]
    share = "Compare the share of the label 'y' in the lines dated before 2023-03-31 with its share in the lines dated after"
    assert right(f"Consider all lines. {share} 2023-03-31; ...") == ["less common"]
    assert right("For how many months is the label 'y' the single most frequently occuring label? ...") == [
        "2"
    ]


def test_questions_are_spread_evenly_over_groups_and_types() -> None:
    examples = generate(240, sizes=(8_000, 30_000), seed=1)
    counts = Counter((example.task_group, example.answer_type) for example in examples)
    assert set(counts) == set(CELLS)
    assert max(counts.values()) - min(counts.values()) <= 4
    assert sum(example.answer_type == "COMPARISON" for example in examples) <= 60
    assert Counter(example.context_size > 15_000 for example in examples)[True] == 120
    assert (
        len({example.id for example in examples})
        == len({example.context_sha256 for example in examples})
        == 240
    )


def test_comparisons_stay_below_a_quarter_if_others_are_asked_too() -> None:
    examples = generate(100, seed=2, task_groups=["counting"])
    counts = Counter(example.answer_type for example in examples)
    assert counts["COMPARISON"] == 25
    only = generate(10, seed=2, answer_types=["COMPARISON"])
    assert {example.answer_type for example in only} == {"COMPARISON"}


def test_a_larger_number_leaves_the_first_examples_unchanged() -> None:
    assert generate(30, sizes=(5_000, 9_000), seed=3)[:7] == generate(7, sizes=(5_000, 9_000), seed=3)
    assert generate(7, seed=3) != generate(7, seed=4)


def test_several_questions_can_share_a_window() -> None:
    examples = generate(20, seed=1, questions_per_window=5)
    windows = Counter(example.context_sha256 for example in examples)
    assert sorted(windows.values()) == [5, 5, 5, 5]
    assert len({(example.context_sha256, example.question) for example in examples}) == 20


def by_type(answer_type: str, n: int = 200, **arguments: Any) -> list[Example]:
    return generate(n, answer_types=[answer_type], sizes=(8_000, 40_000), **{"seed": 6, **arguments})


def test_both_outcomes_of_comparisons_are_equally_frequent() -> None:
    counts = Counter(example.answer[0] for example in by_type("COMPARISON", 300))
    assert set(counts) == {"more common", "less common", "same frequency"}
    assert 0.7 < counts["more common"] / counts["less common"] < 1.43


def test_the_first_named_label_or_user_is_not_right_more_often() -> None:
    labels = by_type("LABEL", 300)
    first = sum(example.labels[0] in example.answer for example in labels) / 300
    assert 0.05 < first < 0.25
    users = [example for example in by_type("USER", 300) if "Which of the users" in example.question]
    readings = [read(example.question) for example in users]
    named_first = sum(
        reading is not None and reading.fields["a"] == example.answer[0]
        for reading, example in zip(readings, users, strict=True)
    )
    assert len(users) > 50
    assert 0.35 < named_first / len(users) < 0.65


def test_first_months_vary() -> None:
    counts = Counter(example.answer[0] for example in by_type("MONTH_YEAR"))
    assert len(counts) > 15
    assert counts.most_common(1)[0][1] < 60


def test_numbers_have_all_magnitudes() -> None:
    counts = Counter(len(f"{int(example.answer[0]):b}") for example in by_type("NUMERIC", 300))
    assert sum(count >= 10 for count in counts.values()) >= 5


def test_ties_are_accepted_up_to_three_or_excluded(tmp_path: Path) -> None:
    tied = [example for example in generate(120, seed=8) if len(example.answer) > 1]
    assert tied
    assert all(len(example.answer) <= 3 and "If several are tied" in example.question for example in tied)
    assert all(len(example.answer) == 1 for example in generate(120, seed=8, ties="exclude"))
    two = generate(
        60, source=make_csv(tmp_path, ("yes", "no")), sizes=(40,), unit="rows", answer_types=["LABEL"]
    )
    assert all(len(example.answer) == 1 for example in two)


def test_comparisons_are_of_clear_differences_or_equal_counts() -> None:
    for example in generate(40, seed=9, answer_types=["COMPARISON"], task_groups=["counting"], min_gap=0.1):
        reading = read(example.question)
        assert reading is not None
        found = [line.label for line in parse(example.materialise_labelled())]
        difference = abs(found.count(reading.fields["a"]) - found.count(reading.fields["b"]))
        assert difference == 0 or difference > 0.1 * example.n_rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task_groups": ["counting"], "answer_types": ["DATE"]}, "no question has its task group in"),
        ({"answer_types": ["COLOUR"]}, "no task group or answer type 'COLOUR'"),
        ({"sizes": ()}, "sizes must not be empty"),
        ({"mode": "published"}, "not 'published'"),
        (
            {"sizes": (1,), "unit": "rows", "answer_types": ["COMPARISON"]},
            "nothing to ask about; choose a larger size",
        ),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(3, **arguments)
