"""The published procedure: its wordings, its order, and each known defect switched on and off."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from oolong.example import Example
from oolong.generator import generate
from oolong.gold_check import GoldError, verify
from oolong.official_questions import Compat, kept_questions, window_questions
from oolong.policies.reading import read
from oolong.questions import Question
from oolong.window import Window, build
from oolong.window_spec import WindowSpec

ALL_DEFECTS = Compat()
NO_DEFECT = Compat.of(())


def window(rows: int = 400, seed: int = 0, source: str = "wordnet") -> Window:
    return build(WindowSpec(source, "all", seed=seed, rows=rows, layout="official"))


def asked(rows: int, compat: Compat, phrase: str, seeds: int = 6) -> list[tuple[Window, Question]]:
    """All questions of several windows that contain a phrase."""
    windows = [window(rows, seed) for seed in range(seeds)]
    return [
        (w, question) for w in windows for question in window_questions(w, compat) if phrase in question.text
    ]


@pytest.mark.parametrize("compat", [ALL_DEFECTS, NO_DEFECT], ids=["as published", "corrected"])
@pytest.mark.parametrize("rows", [8, 14, 60, 200])
def test_recorded_answers_equal_those_of_plain_counting(rows: int, compat: Compat) -> None:
    for seed in range(3):
        for example in generate(
            25, sizes=(rows,), unit="rows", mode="official", split="all", seed=seed, compat=compat
        ):
            verify(example)


def test_official_questions_have_the_published_wordings(tmp_path: Path) -> None:
    path = tmp_path / "spam.csv"
    path.write_text(
        "text,label\n" + "".join(f"message {i},{'ham' if i % 4 else 'spam'}\n" for i in range(900))
    )
    w = window(300, 1, str(path))
    texts = {question.text for question in window_questions(w, NO_DEFECT)}
    a, b = w.labels
    listed = f"{a}, {b}"
    assert {
        (
            "In the above data, which of the labels is the least common? Give your final answer in the form "
            f"'Label: answer' where answer is one of the labels: {listed}."
        ),
        (
            f"In the above data, is label '{a}' more common, less common, or the same frequency as label "
            f"'{b}'? Give your final answer in the form 'Answer: {a} is [X] {b}', where [X] is 'more common "
            "than', 'less common than', or 'same frequency as'."
        ),
        (
            "In the above data, how many data points should be classified as label 'ham'? Give your final "
            "answer in the form 'Answer: number'."
        ),
        (
            "In which month did the label 'ham first occur more often than the label 'spam'? Give your "
            "final answer in the form 'Answer: [month] [year]', where [month] is the name of the month and "
            "[year] is the four-digit year where 'ham' first occured more often than 'spam.'"
        ),
        (
            "For how many months does the label 'ham' occur more frequently than the label 'spam'? "
            "Disregard months where there is a tie.  Give your final answer in the form 'Answer: [X]', "
            "where [X] is the number of months where 'ham' occurs more often than 'spam.'"
        ),
        (
            "For how many months is the label 'spam' the single most frequently occuring label? Disregard "
            "months where there is a tie for the most common label.  Give your final answer in the form "
            "'Answer: [X]', where [X] is the number of months where 'spam' is the most common label."
        ),
    } <= texts
    assert any(" Among instances occuring in this date range, how many data points" in text for text in texts)
    assert any(" of any year. Among instances occuring in " in text for text in texts)
    assert all(read(text) is not None for text in texts)


def test_published_order_is_counting_user_timeline() -> None:
    groups = [question.task_group for question in window_questions(window(), ALL_DEFECTS)]
    assert groups == sorted(groups, key=["counting", "user", "timeline"].index)
    assert set(groups) == {"counting", "user", "timeline"}


def test_first25_keeps_hardly_any_timelines() -> None:
    w = window()
    assert kept_questions(w, ALL_DEFECTS) == window_questions(w, ALL_DEFECTS)[:25]
    kept = kept_questions(w, Compat(first25=False))
    assert len(kept) == 25
    assert Counter(q.task_group for q in kept_questions(w, ALL_DEFECTS))["timeline"] == 0
    assert Counter(q.task_group for q in kept)["timeline"] >= 5


def test_month_year_bug_asks_for_the_first_month_only() -> None:
    first = {q.answer for _, q in asked(2_000, ALL_DEFECTS, "In which month", 3)}
    assert first == {("February 2022",)}
    real = {q.answer for _, q in asked(2_000, Compat(month_year_bug=False), "In which month", 3)}
    assert len(real) > 1


def test_single_user_subset_asks_about_one_user() -> None:
    one = [q for _, q in asked(300, ALL_DEFECTS, "user IDs ")]
    assert one
    assert all("," not in q.text.split("user IDs ")[1].split(".")[0] for q in one)
    assert not asked(300, ALL_DEFECTS, "subset of users with IDs")
    assert asked(300, Compat(single_user_subset=False), "subset of users with IDs")


def test_top50_dates_gives_wrong_answers() -> None:
    def wrong(examples: list[Example]) -> int:
        count = 0
        for example in examples:
            assert example.answer_type == "NUMERIC"
            try:
                verify(replace(example, compat=()))
            except GoldError:
                count += 1
        return count

    def dates(compat: Compat) -> list[Example]:
        found: list[Example] = []
        for seed in range(8):
            examples = generate(
                25, sizes=(90,), unit="rows", mode="official", seed=seed, compat=compat,
                task_groups=["timeline"], answer_types=["NUMERIC"],
            )  # fmt: skip
            found += [example for example in examples if example.task_type == "REPRESENTED_N_TIMES"]
        return found

    assert wrong(dates(Compat(first25=False))) > 0
    assert wrong(dates(Compat(first25=False, top50_dates=False))) == 0


def test_named_first_gives_the_answer_away() -> None:
    def share(compat: Compat) -> float:
        pairs = [q for _, q in asked(500, compat, "which user has more instances", 12)]
        assert len(pairs) > 40
        return sum(f": User {q.answer[0]} or" in q.text for q in pairs) / len(pairs)

    assert share(ALL_DEFECTS) == 1.0
    assert 0.3 < share(Compat(named_first=False)) < 0.7


def test_least_first_asks_where_labels_are_tied() -> None:
    def longest(compat: Compat) -> int:
        return max(len(q.answer) for _, q in asked(60, compat, "the least common", 10))

    assert longest(ALL_DEFECTS) > 1
    assert longest(Compat(least_first=False)) == 1


def test_subset_labels_lists_only_what_occurs() -> None:
    def listed(compat: Compat) -> set[int]:
        found = asked(
            40, compat, "Among instances associated with these users, which of the labels is the least"
        )
        return {len(q.text.split("one of the labels: ")[1].split(", ")) for _, q in found}

    assert min(listed(ALL_DEFECTS)) < 8
    assert listed(Compat(subset_labels=False, least_first=True)) == {8}


def test_set_iteration_leaves_the_windows_order() -> None:
    def order(compat: Compat) -> list[list[str]]:
        return [
            [
                q.text.split("'")[1]
                for q in window_questions(window(300, seed), compat)
                if "single most" in q.text
            ]
            for seed in range(4)
        ]

    in_window_order = [list(window(300, seed).labels) for seed in range(4)]
    assert order(Compat(set_iteration=False)) == in_window_order
    assert order(ALL_DEFECTS) != in_window_order
    assert order(ALL_DEFECTS) == order(ALL_DEFECTS)


def test_few_examples_are_drawn_from_all_that_windows_keep() -> None:
    examples = generate(8, mode="official", sizes=(4_000, 8_000), seed=1)
    assert len(examples) == 8
    assert len({example.context_sha256 for example in examples}) == 2
    assert examples[0].compat == ALL_DEFECTS.on
    assert len(generate(60, mode="official", sizes=(4_000,), seed=1)) == 60


def test_defects_are_named() -> None:
    assert Compat.of(["first25"]).on == ("first25",)
    with pytest.raises(ValueError, match="no known defect 'first26'; there are month_year_bug"):
        Compat.of(["first26"])
    with pytest.raises(ValueError, match="compat is for mode official"):
        generate(1, compat=ALL_DEFECTS)
    with pytest.raises(ValueError, match="has no such questions"):
        generate(1, mode="official", answer_types=["MONTH_YEAR"])
