"""The scripted policies: the reference policy answers every kind of question right, and blind policies score as chance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from oolong.example import Example
from oolong.generator import generate
from oolong.official_questions import Compat, window_questions
from oolong.policies.blind import BlindPolicy, Strategy
from oolong.policies.labeller import Labeller
from oolong.policies.reading import KINDS, labels_in_header, read
from oolong.policies.reference import ReferencePolicy, is_root, policy
from oolong.questions import ANSWER_TYPES, CELLS
from oolong.scoring.scorers import score
from oolong.sources.catalog import open_source
from oolong.window import build
from oolong.window_spec import Layout, WindowSpec
from rlm.testing import ChatRequest, ScriptedClient

Play = Callable[..., Any]


def mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(3))
def test_with_right_labels_every_answer_is_right(play: Play, seed: int) -> None:
    reference = ReferencePolicy(accuracy=1.0)
    examples = generate(72, sizes=(3_000, 8_000, 30_000), seed=seed)
    assert {(example.task_group, example.answer_type) for example in examples} == set(CELLS)
    for example in examples:
        played = play(reference, example)
        assert score(played.answer, example) == 1.0, (played.answer, example.answer, example.question)
        assert score(played.answer, example, "official") == 1.0 or len(example.answer) > 1
        assert 3 < played.turns <= 5


@pytest.mark.parametrize(
    "compat", [Compat(top50_dates=False), Compat.of(())], ids=["as published", "corrected"]
)
def test_published_questions_are_answered_right(play: Play, compat: Compat) -> None:
    reference = ReferencePolicy(accuracy=1.0)
    kinds = set()
    for seed in range(3):
        for example in generate(25, sizes=(300,), unit="rows", mode="official", seed=seed, compat=compat):
            played = play(reference, example)
            assert score(played.answer, example) == 1.0, (played.answer, example.answer, example.question)
            assert score(played.answer, example, "official") == 1.0
            reading = read(example.question)
            kinds.add(reading and reading.kind)
    assert len(kinds) >= (4 if compat.first25 else 9)


def test_every_kind_of_question_is_read_back_in_both_wordings() -> None:
    own = [read(example.question) for example in generate(240, seed=1)]
    assert {reading.kind for reading in own if reading} == set(KINDS)
    # Within a few weeks, one date is often the single most frequent one, and another the single second.
    specs = [WindowSpec(rows=400, seed=seed, layout="official", last_day="2022-04-30") for seed in range(6)]
    windows = [build(spec) for spec in specs]
    published = [
        read(question.text) for window in windows for question in window_questions(window, Compat.of(()))
    ]
    assert None not in own
    assert None not in published
    assert {reading.kind for reading in published if reading} == set(KINDS)
    assert all(reading.official for reading in published if reading)
    assert read("What is the weather?") is None


def test_labels_are_read_from_headers() -> None:
    layouts: tuple[Layout, ...] = ("own", "official")
    for layout in layouts:
        window = build(WindowSpec(rows=5, layout=layout))
        assert labels_in_header(window.text) == window.labels
    assert labels_in_header("Each text message can be classified as spam or ham (i.e., not spam).") == (
        "spam",
        "ham",
    )
    assert labels_in_header("can be classified as either 'positive' or 'negative.'") == (
        "positive",
        "negative",
    )
    assert labels_in_header("nothing of the kind") == ()


def test_questions_about_a_file_are_answered_right(play: Play, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    rows = (f"review {i} || User: 7,{'very good' if i % 3 else 'bad'}\n" for i in range(400))
    path.write_text("text,label\n" + "".join(rows))
    reference = ReferencePolicy(accuracy=1.0, sources=[str(path)])
    for example in generate(36, source=str(path), sizes=(60, 200), unit="rows"):
        played = play(reference, example)
        assert score(played.answer, example) == 1.0, (played.answer, example.answer, example.question)


def test_equal_messages_get_equal_replies(play: Play) -> None:
    (example,) = generate(1, seed=3, answer_types=["LABEL"])
    one, other = play(ReferencePolicy(), example), play(ReferencePolicy(), example)
    assert one == other
    assert one.ready


def test_the_root_answers_from_its_codes_output(play: Play) -> None:
    """With equal labels for all lines the answer changes, so it comes from the sub-models and not from the gold answer."""
    (example,) = generate(1, seed=3, answer_types=["LABEL"], task_groups=["counting"])

    def all_alike(prompts: Sequence[str], ask: Callable[[str], str]) -> list[str]:
        return ["\n".join(f"{i}: {label}" for i in range(1, 400)) for _ in prompts]

    for label in example.labels[:3]:
        played = play(ReferencePolicy(accuracy=1.0), example, sub=all_alike)
        other = example.labels[0] if "least" in example.question and label != example.labels[0] else None
        assert (
            played.answer
            == f"Label: {other or (label if 'least' not in example.question else example.labels[1])}"
        )


def test_failed_and_garbled_subcalls_are_repeated(play: Play, failed_subcall: Callable[[str], str]) -> None:
    (example,) = generate(1, seed=1, sizes=(60_000,), answer_types=["NUMERIC"], task_groups=["counting"])
    calls = 0

    def flaky(prompts: Sequence[str], ask: Callable[[str], str]) -> list[str]:
        nonlocal calls
        calls += 1
        replies = [ask(prompt) for prompt in prompts]
        if calls == 1:
            replies[0] = failed_subcall("the model is gone")
            replies[1] = "I would rather not."
            replies[2] = "\n".join(replies[2].split("\n")[::2]) + "\n999: animal\n0: animal\n1: granite"
        return replies

    played = play(ReferencePolicy(accuracy=1.0), example, sub=flaky)
    assert score(played.answer, example) == 1.0
    assert played.turns == 6
    assert calls == 2


def test_a_rollout_without_working_submodels_ends_with_an_answer(
    play: Play, failed_subcall: Callable[[str], str]
) -> None:
    for answer_type in ANSWER_TYPES:
        (example,) = generate(1, seed=2, answer_types=[answer_type])
        played = play(
            ReferencePolicy(), example, sub=lambda prompts, ask: [failed_subcall("no") for _ in prompts]
        )
        assert played.ready
        assert played.turns <= 12


@pytest.mark.parametrize("max_turns", [1, 2, 3, 4])
def test_the_last_turn_runs_all_remaining_steps(play: Play, max_turns: int) -> None:
    for example in generate(24, seed=4):
        played = play(ReferencePolicy(accuracy=1.0), example, max_turns=max_turns)
        assert played.ready
        assert score(played.answer, example) == 1.0 or max_turns == 1, example.question


def test_after_the_last_turn_it_answers_with_its_candidate(play: Play) -> None:
    (example,) = generate(1, seed=3, answer_types=["USER"])

    def never(prompts: Sequence[str], ask: Callable[[str], str]) -> list[str]:
        raise TimeoutError

    (labels,) = generate(1, seed=3, answer_types=["LABEL"])
    played = play(ReferencePolicy(), labels, max_turns=4, sub=never)
    assert not played.ready
    assert played.forced == "unknown"
    assert play(ReferencePolicy(accuracy=1.0), example, max_turns=4).ready


def test_root_requests_and_subcalls_are_told_apart() -> None:
    root = [{"role": "system", "content": "s"}, {"role": "user", "content": "Question: q\n\nTurn 1/30"}]
    assert is_root(root)
    assert not is_root([{"role": "user", "content": "Label these"}])
    assert not is_root([{"role": "system", "content": "s"}, {"role": "user", "content": "Label these"}])
    reply = ReferencePolicy()(ChatRequest(root, "m"))
    assert 'answer["content"] = "unknown"' in reply


# The sub-model


def test_the_share_of_right_labels_is_the_accuracy() -> None:
    source = open_source("wordnet")
    rows = source.rows("eval")[:2_000]
    for accuracy in (0.0, 0.5, 0.95, 1.0):
        labeller = Labeller(accuracy=accuracy)
        right = sum(labeller.label(row.text) == row.label for row in rows) / len(rows)
        assert abs(right - accuracy) < 0.03
        assert all(labeller.label(row.text) in source.labels for row in rows)


def test_mistakes_depend_only_on_text_and_seed() -> None:
    texts = [row.text for row in open_source("wordnet").rows("train")[:300]]
    labels = open_source("wordnet").labels

    def said(seed: int, texts: Sequence[str]) -> dict[str, str | None]:
        labeller = Labeller(accuracy=0.5, seed=seed)
        return {text: labeller.label(text, labels) for text in texts}

    assert said(1, texts) == said(1, texts[::-1])
    assert said(1, texts) != said(2, texts)


def test_prompts_of_other_forms_are_answered() -> None:
    labeller = Labeller(accuracy=1.0)
    row = open_source("wordnet").rows("train")[5]
    line = f"Date: Mar 01, 2023 || User: 12345 || Instance: {row.text}"
    assert labeller.reply(f"Which kind is it?\n{line}") == f"{row.text}: {row.label}"
    assert labeller.reply(f"Which?\n7) {row.text}") == f"7: {row.label}"
    assert labeller.reply("Tell me a joke.").startswith("There is no line here")
    unknown = labeller.reply("one of these labels: 'a', 'b'.\n1. never seen before")
    assert unknown in ("1: a", "1: b")


def test_an_accuracy_outside_of_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        ReferencePolicy(accuracy=95)


async def test_the_test_server_serves_the_reference_policy() -> None:
    client = ScriptedClient(policy)
    reply = await client.complete(
        [{"role": "user", "content": "one of these labels: 'a', 'b'.\n1. never seen before"}]
    )
    assert reply.content in ("1: a", "1: b")


# Chance


def scores_of(play: Play, strategy: Strategy, examples: Sequence[Example]) -> dict[str, list[float]]:
    """Scores by answer type, with questions about two users as a type of their own."""
    scores: dict[str, list[float]] = defaultdict(list)
    for i, example in enumerate(examples):
        played = play(BlindPolicy(strategy, seed=i), example, max_turns=1)
        assert played.ready
        kind = "OF_TWO" if "Which of the users" in example.question else example.answer_type
        scores[kind].append(score(played.answer, example))
    return scores


def is_chance(scores: Sequence[float], p: float) -> bool:
    """Whether the number of right answers is that of guesses with probability p, within three standard deviations."""
    return abs(mean(scores) - p) <= 3 * math.sqrt(p * (1 - p) / len(scores))


@pytest.mark.parametrize("strategy", ["random", "prior"])
def test_blind_policies_score_as_chance(play: Play, strategy: Strategy) -> None:
    sizes = (8_000, 16_000)
    examples = generate(240, sizes=sizes, seed=21, split="eval")
    examples += generate(120, sizes=sizes, seed=23, split="eval", answer_types=["USER"])
    scores = scores_of(play, strategy, examples)
    right_labels = [len(example.answer) for example in examples if example.answer_type == "LABEL"]
    assert is_chance(scores["LABEL"], mean(right_labels) / 8)
    assert is_chance(scores["COMPARISON"], 1 / 3)
    assert len(scores["OF_TWO"]) > 30
    assert is_chance(scores["OF_TWO"], 1 / 2)
    # About ten common users have most lines. At most a fifth of the lines lies on busy days.
    assert mean(scores["USER"]) < 0.2
    assert mean(scores["DATE"]) < 0.2
    assert mean(scores["MONTH_YEAR"]) < 0.3
    # Because near numbers earn partial credit.
    assert mean(scores["NUMERIC"]) < 0.35


def test_a_policy_that_reads_scores_more_than_one_that_counts(play: Play) -> None:
    examples = generate(144, sizes=(6_000, 16_000), seed=22, split="eval")
    needed = [example for example in examples if (reading := read(example.question)) and reading.needs_labels]
    majority = mean(
        [score(play(BlindPolicy("majority"), example, max_turns=1).answer, example) for example in needed]
    )
    reference = mean(
        [score(play(ReferencePolicy(accuracy=0.95), example).answer, example) for example in needed]
    )
    assert len(needed) > 90
    assert majority < 0.35
    assert reference > 0.7


def test_the_month_defect_lets_a_blind_policy_score(play: Play) -> None:
    """With the defect the first month of the window is always right, without it hardly ever."""

    def months(compat: Compat) -> float:
        examples = generate(
            30, sizes=(700,), unit="rows", mode="official", answer_types=["MONTH_YEAR"], compat=compat, seed=3
        )
        return mean(scores_of(play, "prior", examples)["MONTH_YEAR"])

    assert months(Compat(first25=False)) == 1.0
    assert months(Compat(first25=False, month_year_bug=False)) < 0.8


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy 'clever'"):
        BlindPolicy("clever")  # type: ignore[arg-type] # the mistake that is tested
