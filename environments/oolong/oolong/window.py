"""Windows: long lists of labelled lines whose labels are not shown. A window is a function of its `WindowSpec`.

The layout of a line and the draws of labels, users and dates follow OOLONG-synth (Bertsch et al. 2025, arXiv:2511.02817,
section 3 and its code). The header has our own wording, unless `layout="official"`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import cached_property, lru_cache
from typing import NamedTuple

from oolong import official_wording
from oolong.draws import Draws
from oolong.sources.catalog import open_source
from oolong.sources.source import LabelledSource, Row, SourceError
from oolong.window_spec import MAX_ROWS, WindowSpec

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

CHARS_PER_TOKEN = 2.7
"""Measured with a Qwen tokenizer on windows of questions. Dates and IDs take many tokens."""

COMMON_USER_SHARE = 0.8
"""Share of lines that belong to a common user."""
USER_IDS = (10_000, 99_999)
"""Smallest and largest user ID."""
BUSY_DAY_SHARE = 0.2
"""Share of lines on busy days, in our layout."""

LINE_CHARS = len("Date: Dec 28, 2022 || User: 76063 || Instance: \n")
"""Characters of a line without its text. All dates have the same length, and so have all user IDs."""


class Entry(NamedTuple):
    """One line of a window."""

    text: str
    label: str
    user: int
    day: date


class Window:
    """A window's lines, in the order in which they stand in the text."""

    def __init__(
        self, spec: WindowSpec, source: LabelledSource, labels: Sequence[str], entries: Sequence[Entry]
    ) -> None:
        self.spec = spec
        self.source = source
        self.labels = tuple(labels)
        """All labels of the source, in this window's random order."""
        self.entries = tuple(entries)

    @cached_property
    def text(self) -> str:
        """What the model reads: header, lines, footer."""
        return self._render(with_labels=False)

    @cached_property
    def text_with_labels(self) -> str:
        """The text with ` || Label: ...` at the end of each line: the control task, which needs no reading, and the text
        by which answers are checked."""
        return self._render(with_labels=True)

    def _render(self, *, with_labels: bool) -> str:
        lines = []
        dates: dict[date, str] = {}
        for text, label, user, day in self.entries:
            written = dates.get(day)
            if written is None:
                written = dates[day] = written_date(day)
            end = f" || Label: {label}\n" if with_labels else "\n"
            lines.append(f"Date: {written} || User: {user} || Instance: {text}{end}")
        header, footer = _frame(self.spec, self.source, self.labels, len(self.entries))
        return header + "".join(lines) + footer


def written_date(day: date) -> str:
    """A date in the form of the lines, `Dec 28, 2022`: in English under any locale."""
    return f"{MONTHS[day.month - 1][:3]} {day.day:02d}, {day.year}"


def quoted_list(labels: Sequence[str]) -> str:
    return ", ".join(f"'{label}'" for label in labels)


def _frame(spec: WindowSpec, source: LabelledSource, labels: Sequence[str], n: int) -> tuple[str, str]:
    if spec.layout == "official":
        return official_wording.frame(source, labels, n)
    about = (
        f"{source.items}, one per line, each with a date and the ID of a user. Every line has exactly one label, which is not "
        f"shown and has to be found out by reading the text: it says {source.meaning}, and is one of {quoted_list(labels)}."
    )
    exact = "Questions about them ask for exact figures over all of these lines, not for estimates."
    return (
        f"Below are {n} {about}\n{exact}\n\n",
        f"\nAbove are {n} {about}\n{exact}\n",
    )


def resolve(spec: WindowSpec) -> WindowSpec:
    """The spec of the same window with its size in rows and the hash of its source: the form that task data holds.

    Raises:
        SourceError: the source is missing or cannot be read.
        ValueError: not even one line fits in `chars`.
    """
    source = _source(spec)
    spec = replace(spec, source_sha256=source.sha256)
    if spec.rows is not None:
        return spec
    if spec.tokens is not None:
        if spec.layout == "official":
            rows = official_wording.rows_for_tokens(source.id, spec.tokens)
            if rows is not None:
                return replace(spec, rows=max(rows, 1), tokens=None)
        spec = replace(spec, chars=int(spec.tokens * CHARS_PER_TOKEN), tokens=None)
    assert spec.chars is not None
    return replace(spec, rows=_rows_that_fit(spec, source, spec.chars), chars=None)


def _rows_that_fit(spec: WindowSpec, source: LabelledSource, budget: int) -> int:
    """The number of lines whose window fits in `budget` characters.

    The labels that are drawn decide how long the lines are, and the number of lines decides the labels. So the number
    is found by trial and correction.
    """
    rows_of_split = source.rows(spec.split)
    mean_line = sum(len(row.text) for row in rows_of_split) / max(len(rows_of_split), 1) + LINE_CHARS
    best, too_many, rows = 0, MAX_ROWS + 1, int(budget / mean_line)
    for _ in range(40):
        rows = min(max(rows, best + 1), too_many - 1)
        if rows <= best:
            break
        labels, chosen = _draw_lines(replace(spec, rows=rows, chars=None), source)
        length = sum(map(len, _frame(spec, source, labels, rows))) + sum(
            len(row.text) + LINE_CHARS for row in chosen
        )
        step = (budget - length) / mean_line
        if step < 0:
            too_many = rows
        else:
            best = rows
            if step < 1:
                break
        rows += math.floor(step)
    if best < 1:
        raise ValueError(
            f"no window of {source.id} fits in {budget} characters: header and footer take most of them"
        )
    return best


def build(spec: WindowSpec) -> Window:
    """Makes the window of a spec. The same spec gives the same window on every machine.

    Raises:
        SourceError: the source is missing or cannot be read.
        ValueError: the source has changed since the spec was resolved, or not even one line fits in its size.
    """
    if spec.rows is None:
        return build(resolve(spec))
    source = _source(spec)
    if spec.source_sha256 is not None and spec.source_sha256 != source.sha256:
        raise ValueError(
            f"source {source.id} holds other text than when this window was described (SHA-256 {source.sha256[:12]}, "
            f"not {spec.source_sha256[:12]})"
        )
    seed = _seed(spec, source)
    labels, chosen = _draw_lines(spec, source)
    Draws("mix", *seed).shuffle(chosen)
    users = _draw_users(spec.rows, Draws("users", *seed))
    days = _draw_days(spec, Draws("days", *seed))
    entries = [
        Entry(row.text, row.label, user, day) for row, user, day in zip(chosen, users, days, strict=True)
    ]
    if spec.layout == "official":
        # The published order does not depend on the window's seed: sorted by text, then shuffled with a fixed seed.
        entries.sort(key=lambda entry: entry.text)
        Draws("order", 42).shuffle(entries)
    return Window(spec, source, labels, entries)


def _seed(spec: WindowSpec, source: LabelledSource) -> tuple[object, ...]:
    return (source.id, spec.split, spec.seed)


def _draw_lines(spec: WindowSpec, source: LabelledSource) -> tuple[list[str], list[Row]]:
    """The labels in the window's order, and its rows grouped by label."""
    assert spec.rows is not None
    seed = _seed(spec, source)
    draws = Draws("labels", *seed)
    pools: dict[str, list[Row]] = {label: [] for label in draws.shuffled(source.labels)}
    for row in source.rows(spec.split):
        pools[row.label].append(row)
    labels = [label for label, pool in pools.items() if pool]
    if not labels:
        raise SourceError(f"{source.id}: no text in the split {spec.split}")
    counts = _label_counts(len(labels), spec.rows, spec.skew, draws)
    chosen: list[Row] = []
    for label, count in zip(labels, counts, strict=True):
        chosen.extend(_draw_rows(pools[label], count, Draws("rows", *seed, label)))
    return labels, chosen


def _label_counts(k: int, n: int, skew: tuple[int, int], draws: Draws) -> list[int]:
    temperature = draws.between(*skew)
    weights = [draws.between(1, 30) ** (1 / temperature) for _ in range(k)]
    top = max(weights)
    powers = [math.exp(weight - top) for weight in weights]
    total = math.fsum(powers)
    # Rounded, because the last bit of exp() differs between C libraries and must not change a count.
    counts = [round(round(power / total, 9) * n) for power in powers]
    counts[0] += n - sum(counts)
    while counts[0] < 0:  # with few rows and many labels, too many counts were rounded up: lower the largest
        counts[counts.index(max(counts))] -= 1
        counts[0] += 1
    return counts


def _draw_rows(pool: Sequence[Row], count: int, draws: Draws) -> list[Row]:
    """Draws without replacement until the pool is used up, then again from the whole pool."""
    drawn: list[Row] = []
    while len(drawn) < count:
        drawn.extend(draws.sample(pool, count - len(drawn)))
    return drawn


def _draw_users(n: int, draws: Draws) -> list[int]:
    common: list[int] = []
    seen: set[int] = set()
    low, high = USER_IDS
    wanted = min(max(n // 10, 1), (high - low) // 2)
    while len(common) < wanted:
        user = draws.between(low, high)
        if user not in seen:
            seen.add(user)
            common.append(user)
    users = []
    for _ in range(n):
        if draws.chance(COMMON_USER_SHARE):
            users.append(draws.choice(common))
            continue
        user = draws.between(low, high)
        while user in seen:
            user = draws.between(low, high)
        users.append(user)
    return users


def _draw_days(spec: WindowSpec, draws: Draws) -> list[date]:
    assert spec.rows is not None
    first = date.fromisoformat(spec.first_day)
    span = (date.fromisoformat(spec.last_day) - first).days
    if spec.layout == "official":
        return [first + timedelta(days=draws.between(0, span)) for _ in range(spec.rows)]
    busy = [draws.between(0, span) for _ in range(max(3, spec.rows // 50))]
    return [
        first + timedelta(days=draws.choice(busy) if draws.chance(BUSY_DAY_SHARE) else draws.between(0, span))
        for _ in range(spec.rows)
    ]


def _source(spec: WindowSpec) -> LabelledSource:
    return open_source(json.loads(spec.source) if spec.source.startswith("{") else spec.source)


@lru_cache(maxsize=4)
def cached_build(spec: WindowSpec) -> Window:
    """Does what `build` does, and remembers the last few windows, for the rollouts of one example."""
    return build(spec)
