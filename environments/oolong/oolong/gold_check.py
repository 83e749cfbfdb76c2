"""The check of recorded answers: it works them out a second time, from the text alone.

This module shares no code with the makers of questions and windows. It parses the labelled lines and the question, and finds
the answer by plain counting. Tests and `vf-validate` run `verify`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oolong.example import Example

LINE = re.compile(r"Date: (\w{3} \d{2}, \d{4}) \|\| User: (\d+) \|\| Instance: (.*) \|\| Label: (.*)")
MONTH_NAMES = (
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)


class GoldError(ValueError):
    """The recorded answers of an example are not the right ones, or the example cannot be checked."""


class _Line:
    def __init__(self, written: str, user: str, label: str) -> None:
        self.day = datetime.strptime(written, "%b %d, %Y").date()
        self.user = user
        self.label = label


def verify(example: Example, text: str | None = None) -> None:
    """Checks that the text of an example has the recorded size, and that its answers are exactly the right ones.

    Args:
        example: an example over labelled lines.
        text: the labelled text; None: the example makes it.

    Raises:
        GoldError: a recorded figure or answer is wrong, or the text or the question has no known form.
        SourceError: the source of the text is missing or cannot be read.
        ContextMismatchError: the text is not the one that the example was made for.
    """
    plain = example.materialise()
    labelled = example.materialise_labelled() if text is None else text
    if re.sub(r"(?m)^(Date: .*) \|\| Label: .*$", r"\1", labelled) != plain:
        raise GoldError(f"{example.id}: the labelled text is not the text with labels")
    if len(plain) != example.context_size:
        raise GoldError(f"{example.id}: {len(plain)} characters, not {example.context_size}")
    lines = parse(labelled)
    if len(lines) != example.n_rows:
        raise GoldError(f"{example.id}: {len(lines)} lines, not {example.n_rows}")
    if len(set(example.answer)) != len(example.answer) or not example.answer:
        raise GoldError(f"{example.id}: the answers {example.answer} are empty, or one occurs twice")
    right = answers(example.question, lines, example.labels, top50="top50_dates" in example.compat)
    if set(right) != set(example.answer):
        raise GoldError(
            f"{example.id}: {example.question!r} has the answer {right}, not {list(example.answer)}"
        )


def parse(labelled: str) -> list[_Line]:
    """Parses the lines of a labelled window.

    Raises:
        GoldError: a line has no known form.
    """
    found = []
    for number, line in enumerate(labelled.split("\n")):
        if not line.startswith("Date: "):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise GoldError(f"line {number} cannot be read: {line[:80]!r}")
        found.append(_Line(match[1], match[2], match[4]))
    return found


def answers(
    question: str, lines: Sequence[_Line], labels: Sequence[str], *, top50: bool = False
) -> list[str]:
    """All right answers of a question over labelled lines.

    Args:
        question: text of the question, in our wording or in the published one.
        lines: lines from `parse`.
        labels: all labels of the window.
        top50: count only the 50 most frequent dates, as the published procedure does.

    Raises:
        GoldError: the question has no known form.
    """
    if "first occur" in question or question.startswith("For how many months"):
        subset, rest = list(lines), question
    else:
        subset, rest = _restrict(question, lines)
    for pattern, solve in SOLVERS:
        if found := re.search(pattern, rest):
            return solve(subset, list(labels), found, {"top50": top50})
    raise GoldError(f"the question has no known form: {question!r}")


def _restrict(question: str, lines: Sequence[_Line]) -> tuple[list[_Line], str]:
    if question.startswith(("Consider all lines. ", "In the above data, ")):
        return list(lines), question
    if m := re.match(
        r"Consider only the lines of the users ([\d, ]+)\. |.*?(?:user IDs|users with IDs) ([\d, ]+)\. ",
        question,
    ):
        users = (m[1] or m[2]).split(", ")
        return [line for line in lines if line.user in users], question[m.end() :]
    if m := re.match(r".*? (?:dated|occur) in (\w+)(?:, whatever the year| of any year)\. ", question):
        month = MONTH_NAMES.index(m[1]) + 1
        return [line for line in lines if line.day.month == month], question[m.end() :]
    if m := re.match(
        r".*? (?:from|between) (\w+ \d+, \d+) (?:to|and) (\w+ \d+, \d+), (?:both days included|inclusive)\. ",
        question,
    ):
        first, last = (datetime.strptime(written, "%b %d, %Y").date() for written in m.groups())
        return [line for line in lines if first <= line.day <= last], question[m.end() :]
    raise GoldError(f"the part of the lines that the question is about has no known form: {question!r}")


Solver = Callable[[list[_Line], list[str], "re.Match[str]", dict[str, bool]], list[str]]


def _extreme_label(wanted: Callable[[list[int]], int]) -> Solver:
    def solve(
        lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
    ) -> list[str]:
        listed = found["labels"]
        names = [
            label
            for label in labels
            if label in re.findall(r"'([^']+)'", listed) or label in listed.split(", ")
        ]
        counts = [sum(line.label == name for line in lines) for name in names]
        return [name for name, count in zip(names, counts, strict=True) if count == wanted(counts)]

    return solve


def _how_many(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    return [str(len([line for line in lines if line.label == found["label"]]))]


def _compare(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    difference = sum((line.label == found["a"]) - (line.label == found["b"]) for line in lines)
    phrases = ("same frequency", "more common", "less common")
    official = ("same frequency as", "more common than", "less common than")
    return [
        (official if "Give your final answer" in found.string else phrases)[
            (difference > 0) - (difference < 0)
        ]
    ]


def _place(attribute: str, place: int) -> Solver:
    def solve(
        lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
    ) -> list[str]:
        label = found.groupdict().get("label")
        tally: dict[str, int] = {}
        for line in lines:
            if label is None or line.label == label:
                key = str(getattr(line, attribute))
                tally[key] = tally.get(key, 0) + 1
        if place == 1:
            best = max(tally.values())
            if list(tally.values()).count(best) > 1:
                raise GoldError("the second place is asked for, but the first is shared")
            tally = {key: count for key, count in tally.items() if count < best}
        return [key for key, count in tally.items() if count == max(tally.values())]

    return solve


def _of_two(lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]) -> list[str]:
    first, second = (
        sum(line.user == found[side] and line.label == found["label"] for line in lines)
        for side in ("a", "b")
    )
    return [found["a"]] if first > second else [found["b"]] if second > first else []


def _dates_n_times(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    days = [line.day for line in lines]
    sizes = sorted((days.count(day) for day in set(days)), reverse=True)
    return [str((sizes[:50] if flags["top50"] else sizes).count(int(found["n"])))]


def _before_after(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    cut = datetime.strptime(found["day"], "%Y-%m-%d").date()
    sides = ([line for line in lines if line.day < cut], [line for line in lines if line.day > cut])
    shares = [Fraction(sum(line.label == found["label"] for line in side), len(side)) for side in sides]
    word = "the same frequency" if "Give your final answer" in found.string else "same frequency"
    return ["more common" if shares[0] > shares[1] else "less common" if shares[0] < shares[1] else word]


def _by_month(lines: list[_Line]) -> list[tuple[tuple[int, int], list[str]]]:
    months = sorted({(line.day.year, line.day.month) for line in lines})
    return [
        (month, [line.label for line in lines if (line.day.year, line.day.month) == month])
        for month in months
    ]


def _first_month(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    for (year, month), present in _by_month(lines):
        if present.count(found["a"]) > present.count(found["b"]):
            return [f"{MONTH_NAMES[month - 1]} {year}"]
    return []


def _months_more(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    months = sum(present.count(found["a"]) > present.count(found["b"]) for _, present in _by_month(lines))
    return [str(months)]


def _months_top(
    lines: list[_Line], labels: list[str], found: re.Match[str], flags: dict[str, bool]
) -> list[str]:
    months = 0
    for _, present in _by_month(lines):
        others = max((present.count(label) for label in labels if label != found["label"]), default=0)
        months += present.count(found["label"]) > others
    return [str(months)]


SOLVERS: tuple[tuple[str, Solver], ...] = (
    (r"Which label is the most frequent .* one of these labels: (?P<labels>.*)\.$", _extreme_label(max)),
    (r"Which label is the least frequent .* one of these labels: (?P<labels>.*)\.$", _extreme_label(min)),
    (r"which of the labels is the most common\?.*one of the labels: (?P<labels>.*)\.$", _extreme_label(max)),
    (r"which of the labels is the least common\?.*one of the labels: (?P<labels>.*)\.$", _extreme_label(min)),
    (r"How many of these lines have the label '(?P<label>.+?)'\?", _how_many),
    (r"how many data points should be classified as label '(?P<label>.+?)'\?", _how_many),
    (r"Is the label '(?P<a>.+?)' more common among these lines than the label '(?P<b>.+?)', less", _compare),
    (
        r"is label '(?P<a>.+?)' more common, less common, or the same frequency as label '(?P<b>.+?)'\?",
        _compare,
    ),
    (r"Which user has the most of these lines with the label '(?P<label>.+?)'\?", _place("user", 0)),
    (r"which user has the most instances with the label (?P<label>.+?)\? Give", _place("user", 0)),
    (r"Which user has the most of these lines\?", _place("user", 0)),
    (r"Which user has the second most of these lines\?", _place("user", 1)),
    (r"which user is represented most often\?", _place("user", 0)),
    (r"which user is represented the second most often\?", _place("user", 1)),
    (
        r"Which of the users (?P<a>\d+) and (?P<b>\d+) has more lines with the label '(?P<label>.+?)'\?",
        _of_two,
    ),
    (
        r"which user has more instances with the label (?P<label>.+): User (?P<a>\d+) or User (?P<b>\d+)\?",
        _of_two,
    ),
    (r"Which date is on the most of these lines\?", _place("day", 0)),
    (r"Which date is on the second most of these lines\?", _place("day", 1)),
    (r"which date is represented most often\?", _place("day", 0)),
    (r"which date is represented the second most often\?", _place("day", 1)),
    (r"How many different dates are on exactly (?P<n>\d+) of these lines", _dates_n_times),
    (r"how many dates are represented exactly (?P<n>\d+) times\?", _dates_n_times),
    (r"share of the label '(?P<label>.+?)' in the lines dated before (?P<day>\S+) with", _before_after),
    (
        r"was label '(?P<label>.+?)' more common, less common, or the same frequency before (?P<day>\S+),",
        _before_after,
    ),
    (r"first month with more lines of the label '(?P<a>.+?)' than of the label '(?P<b>.+?)'\?", _first_month),
    (r"did the label '(?P<a>.+?) first occur more often than the label '(?P<b>.+?)'\?", _first_month),
    (r"months are there more lines of the label '(?P<a>.+?)' than of the label '(?P<b>.+?)'\?", _months_more),
    (r"does the label '(?P<a>.+?)' occur more frequently than the label '(?P<b>.+?)'\?", _months_more),
    (r"months is '(?P<label>.+?)' the single most frequent label\?", _months_top),
    (r"months is the label '(?P<label>.+?)' the single most frequently", _months_top),
)
