"""Reads the kind and the fields of a question from its text. For the scripted policies, which see only what a model sees of a
task."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from oolong import official_wording, wording
from oolong.window import MONTHS


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts of a question."""

    kind: str
    """The name of its template, the same in `oolong.wording` and `oolong.official_wording`: MOST_COMMON, HOW_MANY, ..."""
    fields: dict[str, str]
    """Values of the template's fields: a, b, label, n, day."""
    labels: tuple[str, ...]
    """The labels that the question lists, in its order; empty if it lists none."""
    condition: str
    """A Python expression over `day` (a date) and `user` (a str) that selects the lines of the question; "" for all lines."""
    official: bool
    """Whether the wording is the published one."""

    @property
    def needs_labels(self) -> bool:
        """Whether the answer depends on labels. Users and dates can be counted without them."""
        return self.kind not in ("TOP_USER", "SECOND_USER", "TOP_DATE", "SECOND_DATE", "DATES_N_TIMES")


KINDS = (
    "MOST_COMMON", "LEAST_COMMON", "COMPARE", "HOW_MANY", "TOP_USER", "SECOND_USER", "USER_WITH_LABEL", "USER_OF_TWO",
    "TOP_DATE", "SECOND_DATE", "DATES_N_TIMES", "BEFORE_AFTER", "FIRST_MONTH", "MONTHS_MORE", "MONTHS_TOP",
)  # fmt: skip

_LISTS = {"users": r"[\d, ]+", "month": r"\w+", "first": r"\w{3} \d\d, \d{4}", "last": r"\w{3} \d\d, \d{4}"}
_OWN_FIELDS = {
    "scope": r"Consider (?:all|only) [^?]*?\.",
    "labels": r"'[^\n]*'",
    "label": r"[^'\n]+",
    "a": r"[^'\n]+?",
    "b": r"[^'\n]+?",
    "n": r"\d+",
    "day": r"\d{4}-\d\d-\d\d",
}
_OFFICIAL_FIELDS = {
    **_OWN_FIELDS,
    "scope": r"(?:In the above data,|For the following question, only consider [^?]*?,)",
    "label_list": r"[^\n]*",
    "label": r"[^'?\n]+?",
}


def _patterns() -> Iterable[tuple[str, bool, re.Pattern[str]]]:
    for kind in KINDS:
        yield kind, False, wording.pattern(getattr(wording, kind), _OWN_FIELDS)
        yield kind, True, wording.pattern(getattr(official_wording, kind), _OFFICIAL_FIELDS)


PATTERNS = tuple(_patterns())
SCOPES = tuple(
    wording.pattern(template, _LISTS)
    for template in (
        wording.USERS, wording.MONTH, wording.RANGE,
        official_wording.USERS, official_wording.USER_SUBSET, official_wording.MONTH, official_wording.RANGE,
    )
)  # fmt: skip


def read(text: str) -> Reading | None:
    """Finds a question anywhere in a text; None if the text holds no question of a known form."""
    for kind, is_official, pattern in PATTERNS:
        if found := pattern.search(text):
            fields = {name: value for name, value in found.groupdict().items() if value is not None}
            condition = _condition(fields.pop("scope", ""))
            if condition is None:
                continue
            listed = fields.pop("labels", None)
            labels = re.findall(r"'([^']+)'", listed) if listed else fields.pop("label_list", "").split(", ")
            return Reading(kind, fields, tuple(filter(None, labels)), condition, is_official)
    return None


def _condition(scope: str) -> str | None:
    """The expression for the text of a scope; None if the text is not a scope."""
    if scope in ("", wording.ALL, official_wording.ALL):
        return ""
    for pattern in SCOPES:
        if found := pattern.fullmatch(scope):
            fields = found.groupdict()
            if "users" in fields:
                users = fields["users"].split(", ")
                return f"user in {users!r}" if len(users) > 1 else f"user == {users[0]!r}"
            if "month" in fields:
                return (
                    f"day.month == {MONTHS.index(fields['month']) + 1}" if fields["month"] in MONTHS else None
                )
            first, last = (datetime.strptime(fields[name], "%b %d, %Y").date() for name in ("first", "last"))
            return f"date({first.year}, {first.month}, {first.day}) <= day <= date({last.year}, {last.month}, {last.day})"
    return None


def labels_in_header(text: str) -> tuple[str, ...]:
    """The labels that a window's header lists, in its order; empty if no list of labels is recognised."""
    if found := re.search(r"(?:is one of|categories:|relationships:) ((?:'[^'\n]+'(?:, )?)+)", text):
        return tuple(re.findall(r"'([^'\n]+)'", found[1]))
    if found := re.search(r"classified as (?:either )?'?(\w+)'? or '?(\w+)", text):
        return (found[1], found[2])
    return ()
