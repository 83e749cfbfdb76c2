"""The strict scoring rule: the whole answer must be one answer. `oolong.scoring.scorers` lists what it accepts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import date

from oolong.scoring.scored import MAX_ANSWER_CHARS, PARTIAL, Scored
from oolong.window import MONTHS

EMPHASIS = ("***", "**", "__", "*", "_", "`")

PAIRS = (*((mark, mark) for mark in (*EMPHASIS, '"', "'")), ("[", "]"))

PREFIXES = {"LABEL": "label", "USER": "user(?: id)?", "DATE": "date"}

PHRASES = {
    "more common": "more common",
    "more common than": "more common",
    "less common": "less common",
    "less common than": "less common",
    "same frequency": "same frequency",
    "same frequency as": "same frequency",
    "the same frequency": "same frequency",
    "the same frequency as": "same frequency",
}

NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,11}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,3})")

USER = re.compile(r"(?:user )?([0-9]{1,12})", re.IGNORECASE)

ISO_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")

US_DATE = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})")

WRITTEN_DATE = re.compile(r"([A-Za-z]{3,9})\.? ([0-9]{1,2}),? ([0-9]{4})")

MONTH_YEAR = re.compile(r"([A-Za-z]{3,9}),? ([0-9]{4})")

SIDES = re.compile(r"in the form 'Answer: (.{1,200}?) is \[X\] (.{1,200}?)', where \[X\] is '")


def strict(output: object, example: Scored) -> float:
    """Scores an answer by the strict rule, in bounded time: longer answers than `MAX_ANSWER_CHARS` are not read."""
    if not isinstance(output, str) or len(output) > MAX_ANSWER_CHARS:
        return 0.0
    read = READERS.get(example.answer_type, _read_label)
    golds = {read(gold, example) for gold in example.answer} - {None}
    best = 0.0
    for candidate in _undressed(output, example.answer_type, example.task_group == "real"):
        value = read(candidate, example)
        if value is None:
            continue
        if value in golds:
            return 1.0
        if example.answer_type == "NUMERIC":
            best = max(best, max((_closeness(int(value), int(gold)) for gold in golds if gold), default=0.0))
        if example.answer_type == "LIST":
            best = max(best, max((_f1(value, gold) for gold in golds if gold), default=0.0))
    return best


def nearness(output: object, example: Scored, tolerance: float) -> float:
    """How near a number is to the right one: max(0, 1 - |d| / (tolerance * right)), where d is the difference.

    Counts grow with the context, but 0.75**d is almost 0 from a dozen on. So on long contexts 0.75**d cannot tell a careful
    count from a careless one, and this can. The result is 0 for an answer that `strict` does not read as a number, and for
    every answer but 0 if 0 is right.

    Args:
        output: the final answer.
        example: the question and its right answers.
        tolerance: distance from the right number, as a share of it, from which on the result is 0; above 0.
    """
    if example.answer_type != "NUMERIC" or not isinstance(output, str) or len(output) > MAX_ANSWER_CHARS:
        return 0.0
    read = [_read_number(text, example) for text in _undressed(output, "NUMERIC", boxed=False)]
    values = [int(text) for text in read if text is not None]
    golds = [int(text) for gold in example.answer if (text := _read_number(gold, example)) is not None]
    return max((_nearness(value, gold, tolerance) for value in values for gold in golds), default=0.0)


def _nearness(value: int, gold: int, tolerance: float) -> float:
    return max(0.0, 1 - abs(value - gold) / (tolerance * gold)) if gold else float(value == 0)


def _undressed(text: str, answer_type: str, boxed: bool) -> list[str]:
    """The text, followed by its forms with one accepted decoration after the other taken off."""
    word = PREFIXES.get(answer_type)
    names = f"(?:final answer|answer{'|' + word if word else ''})"
    prefix = re.compile(
        rf"(?P<mark>\*\*\*|\*\*|__|\*|_|`)(?:{names}[ ]?:[ ]?(?P=mark)|{names}(?P=mark)[ ]?:)\s*|{names}[ ]?:\s*",
        re.IGNORECASE,
    )
    steps = [text.strip()]
    prefixed = False
    for _ in range(8):
        text = steps[-1]
        found = None if prefixed else prefix.match(text)
        pair = next(
            (
                p
                for p in PAIRS
                if len(text) > len(p[0] + p[1]) and text.startswith(p[0]) and text.endswith(p[1])
            ),
            None,
        )
        box = re.fullmatch(r"\\boxed\{(?:\\text\{([^{}]*)\}|([^{}]*))\}", text) if boxed else None
        if found:
            prefixed = True
            text = text[found.end() :]
        elif box:
            text = box.group(1) if box.group(1) is not None else box.group(2)
        elif pair:
            text = text[len(pair[0]) : -len(pair[1])]
        elif text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        else:
            break
        steps.append(text.strip())
    return steps


def _closeness(value: int, gold: int) -> float:
    distance = abs(value - gold)
    return PARTIAL**distance if distance < 1_000 else 0.0


def _fold(text: str) -> str:
    """A form that is equal for labels that differ only in case. The form of a text that is not ASCII is never ASCII, although
    `str.casefold` and normal forms turn some letters (the Kelvin sign, the long s) into ASCII letters."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return "\0" if folded.isascii() else folded


def _read_label(text: str, example: Scored) -> str | None:
    return _fold(text) or None


def _read_number(text: str, example: Scored) -> str | None:
    return text.replace(",", "") if NUMBER.fullmatch(text) else None


def _read_comparison(text: str, example: Scored) -> str | None:
    folded = " ".join(_fold(text).split())
    if folded in PHRASES:
        return PHRASES[folded]
    if sides := SIDES.search(example.question):
        first, second = (" ".join(_fold(side).split()) for side in sides.groups())
        if folded.startswith(f"{first} is ") and folded.endswith(f" {second}"):
            return PHRASES.get(folded[len(first) + 4 : -len(second) - 1])
    return None


def _read_user(text: str, example: Scored) -> str | None:
    found = USER.fullmatch(text)
    return found.group(1) if found else None


def _read_date(text: str, example: Scored) -> str | None:
    if found := ISO_DATE.fullmatch(text):
        year, month, day = found.groups()
    elif found := US_DATE.fullmatch(text):
        month, day, year = found.groups()
    elif found := WRITTEN_DATE.fullmatch(text):
        name, day, year = found.groups()
        month = _month_number(name) or "0"
    else:
        return None
    try:
        return date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return None


def _read_month(text: str, example: Scored) -> str | None:
    found = MONTH_YEAR.fullmatch(text)
    number = _month_number(found.group(1)) if found else None
    return f"{found.group(2)}-{number}" if found and number else None


def _month_number(name: str) -> str | None:
    for number, month in enumerate(MONTHS, start=1):
        if name.lower() in (month.lower(), month[:3].lower()):
            return f"{number:02d}"
    return None


def _read_list(text: str, example: Scored) -> str | None:
    items = sorted({_fold(" ".join(item.split())) for item in text.split(",")} - {""})
    return "\n".join(items) or None


def _f1(value: str, gold: str) -> float:
    """F1 of two sets written by `_read_list`: a wrong item costs as much as a missing one."""
    found, right = set(value.split("\n")), set(gold.split("\n"))
    return 2 * len(found & right) / (len(found) + len(right))


READERS: dict[str, Callable[[str, Scored], str | None]] = {
    "LABEL": _read_label,
    "NUMERIC": _read_number,
    "COMPARISON": _read_comparison,
    "USER": _read_user,
    "DATE": _read_date,
    "MONTH_YEAR": _read_month,
    "LIST": _read_list,
    "TEXT": _read_label,
}
"""Readers by type of answer. A reader turns a text into a form that is equal for equal answers; None if it is not one."""
