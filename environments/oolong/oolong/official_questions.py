"""The published procedure that makes questions over a window, with a switch for each of its known defects.

It is written anew from the description of the procedure; `oolong.official_wording` has the published sentences. Where the
published code draws from an unseeded generator, the draws here follow from the window's seed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from itertools import combinations

from oolong import official_wording as wording
from oolong.draws import Draws
from oolong.questions import AnswerType, Question, TaskGroup
from oolong.window import MONTHS, Entry, Window, written_date

GAP = 0.02
"""Differences of two shares up to this are not asked about, unless the shares are equal."""
QUESTIONS_PER_WINDOW = 25


@dataclass(frozen=True)
class Compat:
    """Known defects of the published generator: True reproduces it, False corrects it."""

    month_year_bug: bool = True
    """"In which month did A first occur more often than B" is asked only if the answer is the first month of the window. So in
    long windows the answer is always February 2022. False: it is asked wherever there is such a month."""
    single_user_subset: bool = True
    """Subsets of users hold one user, so two kinds of questions never occur. False: 2 to 10 users."""
    top50_dates: bool = True
    """"How many dates are represented exactly n times" counts only the 50 most frequent dates, so the answer is wrong in
    windows of about 50 to 500 lines. False: it counts all dates."""
    first25: bool = True
    """The first 25 questions of a window are kept, in the order counting, users, timelines; so timelines hardly ever occur.
    False: 25 questions are kept, spread evenly over task groups and tasks."""
    named_first: bool = True
    """A question about two users names the one with more lines first. False: the order is random."""
    least_first: bool = True
    """The least common label is asked for even if several labels are tied. All tied labels are recorded as answers, but the
    official scorer accepts only the first. False: the question is not asked where there is a tie."""
    subset_labels: bool = True
    """A question about a part of the lines lists only the labels that occur there. False: it lists all labels."""
    set_iteration: bool = True
    """Some loops run over a `set` of labels, so their order differs from run to run. Here a seeded shuffle gives the order.
    False: the loops run in the window's order."""

    @classmethod
    def of(cls, on: Iterable[str]) -> Compat:
        """Switches on the named defects, and no others.

        Raises:
            ValueError: there is no defect of this name.
        """
        names = set(on)
        known = [field.name for field in fields(cls)]
        unknown = sorted(names - set(known))
        if unknown:
            raise ValueError(f"there is no known defect {unknown[0]!r}; there are {', '.join(known)}")
        return cls(**{name: name in names for name in known})

    @property
    def on(self) -> tuple[str, ...]:
        """Names of the defects that are switched on."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))


def window_questions(window: Window, compat: Compat) -> list[Question]:
    """All questions of a window, in the published order."""
    makers = _Makers(window, compat)
    return [*makers.counting(), *makers.user(), *makers.timeline()]


def kept_questions(window: Window, compat: Compat) -> list[Question]:
    """The questions of a window that the published data set keeps: at most 25."""
    questions = window_questions(window, compat)
    if compat.first25:
        return questions[:QUESTIONS_PER_WINDOW]
    draws = Draws("kept", window.source.id, window.spec.seed)
    kinds: dict[tuple[str, str], list[Question]] = defaultdict(list)
    for question in draws.shuffled(questions):
        kinds[question.task_group, question.task].append(question)
    kept: list[Question] = []
    while len(kept) < min(QUESTIONS_PER_WINDOW, len(questions)):
        for kind in sorted(kinds):
            if kinds[kind] and len(kept) < QUESTIONS_PER_WINDOW:
                kept.append(kinds[kind].pop())
    return kept


class _Makers:
    """The makers of questions over one window, in the published order."""

    def __init__(self, window: Window, compat: Compat) -> None:
        self.entries = window.entries
        self.compat = compat
        self.labels = window.labels
        self.draws = Draws("tasks", window.source.id, window.spec.split, window.spec.seed)
        self.by_date = sorted(window.entries, key=lambda entry: entry.day)

    def _counts(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Counts by label, in the order in which questions list the labels."""
        counts = Counter(entry.label for entry in entries)
        return dict(counts) if self.compat.subset_labels else {label: counts[label] for label in self.labels}

    def _label_loop(self) -> list[str]:
        present = {entry.label for entry in self.entries}
        labels = [label for label in self.labels if label in present]
        return self.draws.shuffled(labels) if self.compat.set_iteration else labels

    def _label_questions(
        self, group: TaskGroup, scope: str, counts: Mapping[str, int], subset: bool
    ) -> Iterable[Question]:
        total = sum(counts.values())
        if total == 0:
            return
        listed = ", ".join(counts)
        most = max(counts.values())
        top = [label for label in counts if counts[label] == most]
        closest = min((abs(most - n) / total for label, n in counts.items() if label != top[0]), default=1.0)
        if len(top) == 1 and closest > GAP:
            text = wording.MOST_COMMON.format(scope=scope, label_list=listed)
            yield Question(group, "MOST_FREQ", "LABEL", text, (top[0],), subset)
        least = [label for label in counts if counts[label] == min(counts.values())]
        if self.compat.least_first or len(least) == 1:
            text = wording.LEAST_COMMON.format(scope=scope, label_list=listed)
            yield Question(group, "LEAST_FREQ", "LABEL", text, tuple(least), subset)
        for a, b in combinations(counts, 2):
            difference = counts[a] / total - counts[b] / total
            if abs(difference) > GAP or difference == 0:
                answer = (
                    "more common than"
                    if difference > 0
                    else "less common than"
                    if difference < 0
                    else "same frequency as"
                )
                text = wording.COMPARE.format(scope=scope, a=a, b=b)
                yield Question(group, "RELATIVE_FREQ", "COMPARISON", text, (answer,), subset)
        for label, n in counts.items():
            text = wording.HOW_MANY.format(scope=scope, label=label)
            yield Question(group, "NUMERIC_ONE_CLASS", "NUMERIC", text, (str(n),), subset)

    def counting(self) -> Iterable[Question]:
        counts = Counter(entry.label for entry in self.entries)
        ordered = {label: counts[label] for label in self.labels}
        return self._label_questions("counting", wording.ALL, ordered, subset=False)

    def user(self) -> Iterable[Question]:
        ranked = Counter(entry.user for entry in self.entries).most_common(50)
        yield from self._places("user", wording.ALL, ranked, subset=False)
        if self.compat.single_user_subset:
            size = min(1, len(ranked))
        else:
            size = self.draws.between(2, 10)
        users = [user for user, _ in self.draws.sample(ranked, size)]
        listed = ", ".join(map(str, users))
        entries = [entry for entry in self.entries if entry.user in set(users)]
        user_scope = wording.USER_SUBSET.format(users=listed)
        yield from self._places(
            "user", user_scope, Counter(e.user for e in entries).most_common(), subset=True
        )
        counts = self._counts(entries)
        yield from self._label_questions("user", wording.USERS.format(users=listed), counts, subset=True)
        for label in counts:
            ranked = Counter(entry.user for entry in entries if entry.label == label).most_common(10)
            if len(ranked) > 1 and ranked[0][1] > ranked[1][1]:
                text = wording.USER_WITH_LABEL.format(scope=user_scope, label=label)
                yield self._user_question("MOST_FREQ", text, ranked[0][0], subset=True)
        for label in dict.fromkeys(entry.label for entry in self.entries):
            yield from self._users_with_label(label)

    def _users_with_label(self, label: str) -> Iterable[Question]:
        ranked = Counter(entry.user for entry in self.entries if entry.label == label).most_common(10)
        if len(ranked) > 1 and ranked[0][1] > ranked[1][1]:
            text = wording.USER_WITH_LABEL.format(scope=wording.ALL, label=label)
            yield self._user_question("MOST_FREQ", text, ranked[0][0])
        end = min(9, len(ranked) - 1)
        middle = 5 if end == 9 else end // 2
        for _ in range(10):
            more, less = ranked[self.draws.between(0, middle)], ranked[self.draws.between(middle, end)]
            if more[1] > less[1] + 1:
                a, b = more[0], less[0]
                if not self.compat.named_first and self.draws.chance(0.5):
                    a, b = b, a
                text = wording.USER_OF_TWO.format(scope=wording.ALL, label=label, a=a, b=b)
                yield self._user_question("RELATIVE_FREQ", text, more[0])
                return

    def _places(
        self, group: TaskGroup, scope: str, ranked: Sequence[tuple[int, int]], subset: bool
    ) -> Iterable[Question]:
        if len(ranked) < 2 or ranked[0][1] == ranked[1][1]:
            return
        yield self._user_question("MOST_FREQ", wording.TOP_USER.format(scope=scope), ranked[0][0], subset)
        if len(ranked) == 2 or ranked[1][1] > ranked[2][1]:
            yield self._user_question(
                "SECOND_MOST_FREQ", wording.SECOND_USER.format(scope=scope), ranked[1][0], subset
            )

    @staticmethod
    def _user_question(task: str, text: str, user: int, subset: bool = False) -> Question:
        return Question("user", task, "USER", text, (str(user),), subset)

    def timeline(self) -> Iterable[Question]:
        yield from self._dates()
        if len({entry.day for entry in self.entries}) == 1:
            return
        yield from self._before_after()
        yield from self._one_month()
        yield from self._date_range()
        yield from self._months()

    @staticmethod
    def _timeline(task: str, answer_type: AnswerType, text: str, answer: object) -> Question:
        return Question("timeline", task, answer_type, text, (str(answer),))

    def _dates(self) -> Iterable[Question]:
        ranked = Counter(entry.day for entry in self.entries).most_common()
        if len(ranked) == 1 or ranked[0][1] > ranked[1][1]:
            yield self._timeline("MOST_FREQ", "DATE", wording.TOP_DATE, ranked[0][0].isoformat())
            if len(ranked) > 2 and ranked[1][1] > ranked[2][1]:
                yield self._timeline(
                    "SECOND_MOST_FREQ", "DATE", wording.SECOND_DATE, ranked[1][0].isoformat()
                )
        if len(ranked) == 1:
            return
        n = ranked[min(3, len(ranked) - 1)][1]
        counted = ranked[:50] if self.compat.top50_dates else ranked
        text = wording.DATES_N_TIMES.format(n=n)
        yield self._timeline("REPRESENTED_N_TIMES", "NUMERIC", text, sum(count == n for _, count in counted))

    def _before_after(self) -> Iterable[Question]:
        n = len(self.by_date)
        for _ in range(10):
            start = self.draws.between(int(n * 0.15), int(n * 0.75))
            if start == n - 1:
                start = max(n - 3, 0)
            cut = self.by_date[start].day
            before = Counter(entry.label for entry in self.by_date if entry.day < cut)
            after = Counter(entry.label for entry in self.by_date if entry.day > cut)
            if not before or not after:
                continue
            asked = False
            for label in self.draws.shuffled(sorted(before)):
                difference = before[label] / before.total() - after[label] / after.total()
                if abs(difference) > GAP or difference == 0:
                    answer = (
                        "more common"
                        if difference > 0
                        else "less common"
                        if difference < 0
                        else "the same frequency"
                    )
                    text = wording.BEFORE_AFTER.format(label=label, day=cut.isoformat())
                    yield self._timeline("RELATIVE_FREQ", "COMPARISON", text, answer)
                    asked = asked or difference != 0
            if asked:
                return

    def _one_month(self) -> Iterable[Question]:
        for _ in range(21):
            month = self.draws.between(1, 12)
            entries = [entry for entry in self.entries if entry.day.month == month]
            if entries:
                scope = wording.MONTH.format(month=MONTHS[month - 1])
                yield from self._label_questions("timeline", scope, self._counts(entries), subset=True)
                return

    def _date_range(self) -> Iterable[Question]:
        n = len(self.by_date)
        offset = 10 if n >= 11 else n // 2
        start = self.draws.between(int(n * 0.1), int(n * 0.5))
        if offset <= 2 or (n < 11 and start + offset + 2 >= n):
            return
        end = self.draws.between(start + offset, max(start + offset + 2, int(n * 0.9)))
        first, last = self.by_date[start].day, self.by_date[min(end, n - 1)].day
        entries = [entry for entry in self.by_date if first <= entry.day <= last]
        scope = wording.RANGE.format(first=written_date(first), last=written_date(last))
        yield from self._label_questions("timeline", scope, self._counts(entries), subset=True)

    def _months(self) -> Iterable[Question]:
        months: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        for entry in self.by_date:
            months[entry.day.year, entry.day.month][entry.label] += 1
        labels = self._label_loop()
        pairs = [(a, b) for a in labels for b in labels if a != b]
        for a, b in pairs:
            considered = list(months.items())[: 1 if self.compat.month_year_bug else None]
            first = next((month for month, counts in considered if counts[a] > counts[b]), None)
            if first is not None:
                answer = date(*first, 1)
                text = wording.FIRST_MONTH.format(a=a, b=b)
                yield self._timeline(
                    "RELATIVE_FREQ", "MONTH_YEAR", text, f"{MONTHS[answer.month - 1]} {answer.year}"
                )
        for a, b in pairs:
            n = sum(counts[a] > counts[b] for counts in months.values())
            yield self._timeline("RELATIVE_FREQ", "NUMERIC", wording.MONTHS_MORE.format(a=a, b=b), n)
        for label in labels:
            n = sum(
                all(counts[label] > counts[other] for other in counts if other != label)
                for counts in months.values()
                if counts[label]
            )
            yield self._timeline("MOST_FREQ", "NUMERIC", wording.MONTHS_TOP.format(label=label), n)
