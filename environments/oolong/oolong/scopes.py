"""The part of a window's lines that a question is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oolong import wording
from oolong.draws import Draws
from oolong.window import MONTHS, Entry, written_date


@dataclass(frozen=True, slots=True)
class Scope:
    """Some lines, and the sentence by which a question names them."""

    text: str
    entries: Sequence[Entry]
    subset: bool = True
    """Whether the lines are only a part of the window's lines."""


def all_lines(entries: Sequence[Entry]) -> Scope:
    return Scope(wording.ALL, entries, subset=False)


def lines_of_users(entries: Sequence[Entry], candidates: Sequence[int], draws: Draws) -> Scope:
    """The lines of 2 to 10 users drawn from `candidates`."""
    users = set(draws.sample(candidates, draws.between(2, 10)))
    listed = ", ".join(map(str, draws.shuffled(sorted(users))))
    chosen = [entry for entry in entries if entry.user in users]
    return Scope(wording.USERS.format(users=listed), chosen)


def lines_of_a_month(entries: Sequence[Entry], draws: Draws) -> Scope:
    """The lines of one calendar month of all years."""
    month = draws.between(1, 12)
    chosen = [entry for entry in entries if entry.day.month == month]
    return Scope(wording.MONTH.format(month=MONTHS[month - 1]), chosen)


def lines_of_a_period(entries: Sequence[Entry], draws: Draws) -> Scope:
    """The lines between two dates, both included: at least a tenth of all lines."""
    days = sorted(entry.day for entry in entries)
    n = len(days)
    start = draws.between(n // 10, n // 2)
    end = draws.between(min(start + n // 10 + 1, n - 1), max(start + n // 10 + 1, n * 9 // 10))
    first, last = days[start], days[min(end, n - 1)]
    chosen = [entry for entry in entries if first <= entry.day <= last]
    return Scope(wording.RANGE.format(first=written_date(first), last=written_date(last)), chosen)
