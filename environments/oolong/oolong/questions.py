"""Questions over a window in mode "fixed", each with its right answers.

Questions are sorted into cells of (task group, answer type). A maker draws one question of one kind for its cell. It returns
None if the window has none to ask, because every tie is too wide or every difference too small. What a policy could exploit
without reading is drawn evenly: which of two labels or users is named first, which comparison is true, how large a number is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

from oolong import wording
from oolong.draws import Draws
from oolong.scopes import Scope, all_lines, lines_of_a_month, lines_of_a_period, lines_of_users
from oolong.window import MONTHS, Window, quoted_list

TaskGroup = Literal["counting", "user", "timeline"]
AnswerType = Literal["LABEL", "NUMERIC", "COMPARISON", "USER", "DATE", "MONTH_YEAR"]
Cell = tuple[TaskGroup, AnswerType]
Ties = Literal["accept", "exclude"]

MORE, LESS, SAME = "more common", "less common", "same frequency"

MAX_TIED = 3
"""A question with more right answers than this, or than half of all labels, is not asked."""

MIN_SCOPE = 5
"""Least number of lines of a scope that questions are asked about."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its right answers."""

    task_group: TaskGroup
    task: str
    """MOST_FREQ, LEAST_FREQ, RELATIVE_FREQ, NUMERIC_ONE_CLASS, SECOND_MOST_FREQ or REPRESENTED_N_TIMES."""
    answer_type: AnswerType
    text: str
    answer: tuple[str, ...]
    """The right answers: each of them alone is right. Labels are unchanged, numbers and user IDs in digits, dates in ISO form,
    months as `March 2023`, comparisons as "more common", "less common" or "same frequency" (in mode "official" the published
    phrases)."""
    input_subset: bool = False
    """Whether the question is about a part of the lines."""


class Asker:
    """Draws questions over one window."""

    def __init__(self, window: Window, *, min_gap: float = 0.02, ties: Ties = "accept") -> None:
        """
        Args:
            window: the window that is asked about.
            min_gap: least difference of two shares, from 0 to 1, that a comparison is asked about. Equal shares are asked about
                too.
            ties: "accept": any of the tied answers is right, and the question says so. "exclude": a question whose answer is
                tied is not asked.
        """
        self.window = window
        self.labels = window.labels
        self.min_gap = Fraction(min_gap).limit_denominator(10_000)
        self.max_tied = MAX_TIED if ties == "accept" else 1
        self.all = all_lines(window.entries)

    def ask(self, cell: Cell, draws: Draws) -> Question | None:
        """A question of the cell; None if this window has none."""
        for maker in draws.shuffled(MAKERS[cell]):
            for _ in range(4):  # the drawn scope may have nothing to ask about
                question = maker(self, cell[0], draws)
                if question is not None:
                    return question
        return None

    def _scope(self, group: TaskGroup, draws: Draws) -> Scope:
        if group == "counting":
            return self.all
        if group == "user":
            return self._user_scope(draws)
        return (lines_of_a_month if draws.chance(0.5) else lines_of_a_period)(self.window.entries, draws)

    def _user_scope(self, draws: Draws) -> Scope:
        ranked = ranking(entry.user for entry in self.window.entries)
        return lines_of_users(self.window.entries, [user for user, _ in ranked[:50]], draws)

    # Counting, over any scope

    def most_or_least_common(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._scope(group, draws)
        counts = Counter(entry.label for entry in scope.entries)
        most = draws.chance(0.5)
        wanted = (max if most else min)(counts[label] for label in self.labels)
        answer = [label for label in self.labels if counts[label] == wanted]
        if len(scope.entries) < MIN_SCOPE or len(answer) > max(
            min(self.max_tied, (len(self.labels) - 1) // 2), 1
        ):
            return None
        template = wording.MOST_COMMON if most else wording.LEAST_COMMON
        text = template.format(scope=scope.text, labels=quoted_list(self.labels))
        task = "MOST_FREQ" if most else "LEAST_FREQ"
        return Question(group, task, "LABEL", text, tuple(answer), scope.subset)

    def compare(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._scope(group, draws)
        n = len(scope.entries)
        if n < MIN_SCOPE:
            return None
        counts = Counter(entry.label for entry in scope.entries)
        pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for a in self.labels:
            for b in self.labels:
                difference = counts[a] - counts[b]
                if a == b or counts[a] + counts[b] == 0 or 0 < abs(difference) <= self.min_gap * n:
                    continue
                pairs[_phrase(difference)].append((a, b))
        if not pairs:
            return None
        truth = draws.choice(sorted(pairs))
        a, b = draws.choice(pairs[truth])
        text = wording.COMPARE.format(scope=scope.text, a=a, b=b)
        return Question(group, "RELATIVE_FREQ", "COMPARISON", text, (truth,), scope.subset)

    def how_many(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._scope(group, draws)
        if len(scope.entries) < MIN_SCOPE:
            return None
        counts = Counter(entry.label for entry in scope.entries)
        label = by_magnitude([(counts[label], label) for label in self.labels], draws)
        text = wording.HOW_MANY.format(scope=scope.text, label=label)
        return Question(group, "NUMERIC_ONE_CLASS", "NUMERIC", text, (str(counts[label]),), scope.subset)

    # Users

    def top_user(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._user_scope(draws) if draws.chance(0.5) else self.all
        second = draws.chance(0.5)
        answer = self._place(ranking(entry.user for entry in scope.entries), second)
        if answer is None:
            return None
        text = (wording.SECOND_USER if second else wording.TOP_USER).format(scope=scope.text)
        return Question(group, _place_task(second), "USER", text, tuple(map(str, answer)), scope.subset)

    def user_with_label(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._user_scope(draws) if draws.chance(0.5) else self.all
        label = draws.choice(self.labels)
        answer = self._place(
            ranking(entry.user for entry in scope.entries if entry.label == label), second=False
        )
        if answer is None:
            return None
        text = wording.USER_WITH_LABEL.format(scope=scope.text, label=label)
        return Question(group, "MOST_FREQ", "USER", text, tuple(map(str, answer)), scope.subset)

    def user_of_two(self, group: TaskGroup, draws: Draws) -> Question | None:
        label = draws.choice(self.labels)
        ranked = ranking(entry.user for entry in self.window.entries if entry.label == label)[:10]
        pairs = [(a, b) for a, count in ranked for b, other in ranked if count > other + 1]
        if not pairs:
            return None
        more, less = draws.choice(pairs)
        a, b = draws.shuffled((more, less))
        text = wording.USER_OF_TWO.format(scope=wording.ALL, a=a, b=b, label=label)
        return Question(group, "RELATIVE_FREQ", "USER", text, (str(more),))

    # Dates

    def top_date(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._scope(group, draws) if draws.chance(0.5) else self.all
        second = draws.chance(0.5)
        answer = self._place(ranking(entry.day for entry in scope.entries), second)
        if answer is None:
            return None
        text = (wording.SECOND_DATE if second else wording.TOP_DATE).format(scope=scope.text)
        dates = tuple(day.isoformat() for day in answer)
        return Question(group, _place_task(second), "DATE", text, dates, scope.subset)

    def dates_n_times(self, group: TaskGroup, draws: Draws) -> Question | None:
        scope = self._scope(group, draws) if draws.chance(0.5) else self.all
        histogram = Counter(Counter(entry.day for entry in scope.entries).values())
        if len(scope.entries) < MIN_SCOPE:
            return None
        n = by_magnitude([(dates, n) for n, dates in sorted(histogram.items())], draws)
        text = wording.DATES_N_TIMES.format(scope=scope.text, n=n)
        return Question(group, "REPRESENTED_N_TIMES", "NUMERIC", text, (str(histogram[n]),), scope.subset)

    def before_or_after(self, group: TaskGroup, draws: Draws) -> Question | None:
        days = sorted(entry.day for entry in self.window.entries)
        cut = days[draws.between(len(days) * 15 // 100, len(days) * 75 // 100)]
        before = Counter(entry.label for entry in self.window.entries if entry.day < cut)
        after = Counter(entry.label for entry in self.window.entries if entry.day > cut)
        n_before, n_after = before.total(), after.total()
        if min(n_before, n_after) < MIN_SCOPE:
            return None
        labels: dict[str, list[str]] = defaultdict(list)
        for label in self.labels:
            difference = Fraction(before[label], n_before) - Fraction(after[label], n_after)
            if before[label] + after[label] == 0 or 0 < abs(difference) <= self.min_gap:
                continue
            labels[_phrase(difference)].append(label)
        if not labels:
            return None
        truth = draws.choice(sorted(labels))
        text = wording.BEFORE_AFTER.format(
            scope=wording.ALL, label=draws.choice(labels[truth]), day=cut.isoformat()
        )
        return Question(group, "RELATIVE_FREQ", "COMPARISON", text, (truth,))

    # Calendar months

    def _months(self) -> list[tuple[tuple[int, int], Counter[str]]]:
        months: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        for entry in self.window.entries:
            months[entry.day.year, entry.day.month][entry.label] += 1
        return sorted(months.items())

    def first_month(self, group: TaskGroup, draws: Draws) -> Question | None:
        months = self._months()
        pairs: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
        for a in self.labels:
            for b in self.labels:
                first = next((month for month, counts in months if counts[a] > counts[b]), None)
                if first is not None:
                    pairs[first].append((a, b))
        if not pairs:
            return None
        # The first month of a window is right for half of all pairs. Months are drawn before pairs, so that it is not the
        # answer more often than other months.
        year, month = draws.choice(sorted(pairs))
        a, b = draws.choice(pairs[year, month])
        text = wording.FIRST_MONTH.format(scope=wording.ALL, a=a, b=b)
        return Question(group, "RELATIVE_FREQ", "MONTH_YEAR", text, (f"{MONTHS[month - 1]} {year}",))

    def months_more(self, group: TaskGroup, draws: Draws) -> Question | None:
        months = self._months()
        sums = [
            (sum(counts[a] > counts[b] for _, counts in months), (a, b))
            for a in self.labels
            for b in self.labels
            if a != b
        ]
        a, b = by_magnitude(sums, draws)
        answer = sum(counts[a] > counts[b] for _, counts in months)
        text = wording.MONTHS_MORE.format(scope=wording.ALL, a=a, b=b)
        return Question(group, "RELATIVE_FREQ", "NUMERIC", text, (str(answer),))

    def months_top(self, group: TaskGroup, draws: Draws) -> Question | None:
        months = self._months()
        sums = {
            label: sum(
                all(counts[label] > counts[other] for other in self.labels if other != label)
                for _, counts in months
            )
            for label in self.labels
        }
        label = by_magnitude([(n, label) for label, n in sums.items()], draws)
        text = wording.MONTHS_TOP.format(scope=wording.ALL, label=label)
        return Question(group, "MOST_FREQ", "NUMERIC", text, (str(sums[label]),))

    def _place(self, ranked: Sequence[tuple[T, int]], second: bool) -> list[T] | None:
        """The items in the first place, or in the second. None if too many items share that place, if the second is asked for
        and the first is shared, or if the items in it have one line each."""
        place = 0
        if second:
            if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
                return None
            place = 1
        if len(ranked) <= place + 1 or ranked[place][1] < 2:
            return None
        tied = [item for item, count in ranked if count == ranked[place][1]]
        if len(tied) > min(self.max_tied, (len(ranked) - place) // 2):
            return None
        return tied


def ranking(items: Iterable[Any]) -> list[tuple[Any, int]]:
    """Items with their counts, the most frequent first; equally frequent items in their own order."""
    return sorted(Counter(items).items(), key=lambda pair: (-pair[1], pair[0]))


def by_magnitude(values: Sequence[tuple[int, T]], draws: Draws) -> T:
    """Draws an item so that every magnitude (power of two) among the numbers is equally likely."""
    buckets: dict[int, list[T]] = defaultdict(list)
    for number, item in values:
        buckets[number.bit_length()].append(item)
    return draws.choice(buckets[draws.choice(sorted(buckets))])


def _phrase(difference: int | Fraction) -> str:
    return MORE if difference > 0 else LESS if difference < 0 else SAME


def _place_task(second: bool) -> str:
    return "SECOND_MOST_FREQ" if second else "MOST_FREQ"


Maker = Callable[[Asker, TaskGroup, Draws], Question | None]

MAKERS: dict[Cell, tuple[Maker, ...]] = {
    ("counting", "LABEL"): (Asker.most_or_least_common,),
    ("counting", "NUMERIC"): (Asker.how_many,),
    ("counting", "COMPARISON"): (Asker.compare,),
    ("user", "USER"): (Asker.top_user, Asker.user_with_label, Asker.user_of_two),
    ("user", "LABEL"): (Asker.most_or_least_common,),
    ("user", "NUMERIC"): (Asker.how_many,),
    ("user", "COMPARISON"): (Asker.compare,),
    ("timeline", "DATE"): (Asker.top_date,),
    ("timeline", "LABEL"): (Asker.most_or_least_common,),
    ("timeline", "NUMERIC"): (Asker.how_many, Asker.dates_n_times, Asker.months_more, Asker.months_top),
    ("timeline", "COMPARISON"): (Asker.compare, Asker.before_or_after),
    ("timeline", "MONTH_YEAR"): (Asker.first_month,),
}
"""The makers of each cell."""

CELLS: tuple[Cell, ...] = tuple(MAKERS)
GROUPS: tuple[TaskGroup, ...] = ("counting", "user", "timeline")
ANSWER_TYPES: tuple[AnswerType, ...] = ("LABEL", "NUMERIC", "COMPARISON", "USER", "DATE", "MONTH_YEAR")
