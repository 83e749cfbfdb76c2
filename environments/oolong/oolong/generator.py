"""The generator of examples in the modes "fixed" and "official"."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from oolong.draws import Draws
from oolong.example import Example, Mode, text_sha256
from oolong.official_questions import QUESTIONS_PER_WINDOW, Compat, kept_questions
from oolong.questions import ANSWER_TYPES, CELLS, GROUPS, Asker, Cell, Question, Ties
from oolong.sources.source import Split
from oolong.window import Window, build, resolve
from oolong.window_spec import WindowSpec

Unit = Literal["chars", "tokens", "rows"]

COMPARISON_CAP = 0.25
"""Largest share of comparisons among the questions. A guess answers half of the comparisons, so there must not be many."""


def generate(
    n: int,
    *,
    source: str | Mapping[str, Any] = "wordnet",
    split: Split = "train",
    sizes: Sequence[int] = (8_000,),
    unit: Unit = "chars",
    seed: int = 0,
    mode: Literal["fixed", "official"] = "fixed",
    task_groups: Sequence[str] = GROUPS,
    answer_types: Sequence[str] = ANSWER_TYPES,
    questions_per_window: int = 1,
    min_gap: float = 0.02,
    ties: Ties = "accept",
    skew: tuple[int, int] = (2, 6),
    compat: Compat | None = None,
) -> list[Example]:
    """Makes examples. The same arguments give the same examples on every machine. In mode "fixed" a larger n only adds
    examples at the end.

    Args:
        n: number of examples.
        source: a name, the path of a file, or a source's `ref`; see `oolong.sources.catalog.open_source`.
        split: "train" and "eval" share no text.
        sizes: sizes of windows, used in turn.
        unit: unit of `sizes`.
        seed: another seed gives other windows and questions.
        mode: "fixed" asks our questions, spread evenly; "official" follows the published procedure.
        task_groups, answer_types: groups and types of the questions.
        questions_per_window: number of examples that share a window (in mode "fixed").
        min_gap, ties: see `oolong.questions.Asker` (in mode "fixed").
        skew: see `WindowSpec`.
        compat: defects of the published procedure to reproduce, all if None (in mode "official").

    Raises:
        SourceError: the source is missing or cannot be read.
        ValueError: an argument is out of range, or the windows are so small that there is nothing to ask.
    """
    cells = [cell for cell in CELLS if cell[0] in task_groups and cell[1] in answer_types]
    unknown = sorted(set(task_groups) - set(GROUPS)) + sorted(set(answer_types) - set(ANSWER_TYPES))
    if unknown:
        raise ValueError(f"there is no task group or answer type {unknown[0]!r}")
    if not cells:
        raise ValueError(
            f"no question has its task group in {list(task_groups)} and its answer type in {list(answer_types)}"
        )
    if n < 0 or not sizes or questions_per_window < 1:
        raise ValueError("n must be at least 0, questions_per_window at least 1, and sizes must not be empty")
    name = source if isinstance(source, str) else json.dumps(source, sort_keys=True)
    if mode == "official":
        base = WindowSpec(name, split, rows=1, skew=skew, layout="official")
        return _official(n, base, sizes, unit, seed, set(cells), compat or Compat())
    if mode != "fixed":
        raise ValueError(f"the mode must be fixed or official, not {mode!r}")
    if compat is not None:
        raise ValueError("compat is for mode official")
    base = WindowSpec(name, split, rows=1, skew=skew)
    return _fixed(n, base, sizes, unit, seed, cells, questions_per_window, min_gap, ties)


def _sized(base: WindowSpec, size: int, unit: Unit, seed: int) -> WindowSpec:
    sizes: dict[str, int | None] = {"rows": None, unit: size}
    return resolve(replace(base, seed=seed, **sizes))  # type: ignore[arg-type] # the keys are of type int | None


ATTEMPTS = 8
"""Windows that are tried for a cell before another cell replaces it."""


def _fixed(
    n: int,
    base: WindowSpec,
    sizes: Sequence[int],
    unit: Unit,
    seed: int,
    cells: list[Cell],
    questions_per_window: int,
    min_gap: float,
    ties: Ties,
) -> list[Example]:
    schedule = _Schedule(cells, Draws("schedule", base.source, base.split, seed))
    examples: list[Example] = []
    number = 0
    while len(examples) < n:
        size = (
            sizes[(number + number // len(sizes)) % len(sizes)]
            if len(sizes) % 2 == 0
            else sizes[number % len(sizes)]
        )
        asked: set[str] = set()
        wanted = schedule.order()
        # If a window has no question for the cell that is due, other windows are tried before another cell replaces it.
        for attempt in range(ATTEMPTS if questions_per_window == 1 else 1):
            spec = _sized(base, size, unit, (seed * 1_000_000 + number) * ATTEMPTS + attempt)
            window = build(spec)
            asker = Asker(window, min_gap=min_gap, ties=ties)
            questions = _ask(
                asker,
                wanted[:1] if attempt < ATTEMPTS - 1 and questions_per_window == 1 else None,
                schedule,
                questions_per_window,
                asked,
            )
            if questions:
                break
        if not questions:
            raise ValueError(
                f"a window of {size} {unit} of {window.source.id} has nothing to ask about; choose a larger size"
            )
        digest = text_sha256(window.text)
        for question in questions[: n - len(examples)]:
            index = len(examples)
            examples.append(_example(question, window, digest, index, seed, "fixed", ()))
        number += 1
    return examples


def _ask(
    asker: Asker, only: Sequence[Cell] | None, schedule: _Schedule, count: int, asked: set[str]
) -> list[Question]:
    spec = asker.window.spec
    questions: list[Question] = []
    for turn in range(count):
        for cell in only or schedule.order():
            question = asker.ask(cell, Draws("question", spec.source, spec.split, spec.seed, turn, *cell))
            if question is not None and question.text not in asked:
                asked.add(question.text)
                questions.append(question)
                schedule.took(cell)
                break
    return questions


class _Schedule:
    """The order in which cells are due: the least asked first, with a cap on comparisons."""

    def __init__(self, cells: Sequence[Cell], draws: Draws) -> None:
        self.taken = dict.fromkeys(cells, 0)
        self.draws = draws
        self.total = 0
        self.capped = any(cell[1] != "COMPARISON" for cell in cells)

    def order(self) -> list[Cell]:
        cells = sorted(self.draws.shuffled(list(self.taken)), key=lambda cell: self.taken[cell])
        comparisons = sum(count for cell, count in self.taken.items() if cell[1] == "COMPARISON")
        if self.capped and comparisons + 1 > COMPARISON_CAP * (self.total + 1):
            cells = [cell for cell in cells if cell[1] != "COMPARISON"]
        return cells

    def took(self, cell: Cell) -> None:
        self.taken[cell] += 1
        self.total += 1


def _official(
    n: int, base: WindowSpec, sizes: Sequence[int], unit: Unit, seed: int, cells: set[Cell], compat: Compat
) -> list[Example]:
    examples: list[Example] = []
    windows = max(-(-n // QUESTIONS_PER_WINDOW), min(len(sizes), n))
    number = empty = 0
    while len(examples) < n:
        spec = _sized(base, sizes[number % len(sizes)], unit, seed * 1_000_000 + number)
        window = build(spec)
        questions = [q for q in kept_questions(window, compat) if (q.task_group, q.answer_type) in cells]
        # If fewer questions are needed than the window has, they are drawn: its questions are sorted by kind, so the first
        # ones would be of few kinds.
        quota = -(-(n - len(examples)) // max(windows - number, 1))
        chosen = set(Draws("quota", seed, number).sample(range(len(questions)), quota))
        digest = text_sha256(window.text)
        for index, question in enumerate(questions):
            if index in chosen and len(examples) < n:
                examples.append(
                    _example(question, window, digest, len(examples), seed, "official", compat.on)
                )
        empty = 0 if questions else empty + 1
        if empty > 20:
            raise ValueError(
                "the published procedure has no such questions for windows of this size; choose another size"
            )
        number += 1
    return examples


def _example(
    question: Question,
    window: Window,
    sha256: str,
    index: int,
    seed: int,
    mode: Mode,
    compat: tuple[str, ...],
) -> Example:
    spec = window.spec
    return Example(
        id=f"{window.source.id}-{spec.split}-{mode}-{seed}-{index:05d}-{sha256[:8]}",
        seed=seed,
        source=window.source.id,
        split=spec.split,
        mode=mode,
        task_group=question.task_group,
        task_type=question.task,
        answer_type=question.answer_type,
        prompt=question.text,
        answer=question.answer,
        input_subset=question.input_subset,
        labels=window.labels,
        context=spec,
        n_rows=len(window.entries),
        context_size=len(window.text),
        context_sha256=sha256,
        compat=compat,
    )
