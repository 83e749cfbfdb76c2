"""Policies that answer without reading the lines. Their scores are those of chance: a task that they solve is worthless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from oolong.draws import Draws
from oolong.policies.reading import Reading, read
from oolong.policies.reference import is_root, text_of

if TYPE_CHECKING:
    from rlm.testing import ChatRequest

Strategy = Literal["random", "prior", "majority"]

COMPARISONS = ("more common", "less common", "same frequency")


class BlindPolicy:
    """Answers in the first turn, by a strategy:

    - "random": a valid answer at random, as OOLONG's paper defines its random baseline. A number is the number of lines
      divided by the number of labels; a user, date or month is that of a random line.
    - "prior": the answer that is named first: the first label, "more common", the first user, the window's first month; for
      other questions as "random".
    - "majority": the most frequent answer without regard to labels: the user, date or month of most lines; for other
      questions as "prior".
    """

    def __init__(self, strategy: Strategy = "random", seed: int = 0) -> None:
        """
        Raises:
            ValueError: the strategy is unknown.
        """
        if strategy not in ("random", "prior", "majority"):
            raise ValueError(f"there is no strategy {strategy!r}; there are random, prior and majority")
        self.strategy = strategy
        self.seed = seed

    def __call__(self, request: ChatRequest) -> str:
        if not is_root(request.messages):
            return "I do not read."
        first = next(text_of(message) for message in request.messages if message.get("role") == "user")
        return f"I guess.\n\n```repl\n{self.code(first)}\n```"

    def code(self, question: str) -> str:
        """The cell that sets the answer to a guess at a question."""
        reading = read(question)
        guess = '"unknown"' if reading is None else self._guess(reading, Draws("blind", self.seed, question))
        head = """\
import random, re
from collections import Counter
from datetime import datetime
lines = re.findall(r"(?m)^Date: (\\w+ \\d+, \\d+) \\|\\| User: (\\d+)", context)
header = context.split("\\n\\nDate: ")[0]
labels = max(len(re.findall(r"'[^'\\n]+'", header)), 2)"""
        return f'{head}\nanswer["content"] = str({guess})\nanswer["ready"] = True'

    def _guess(self, reading: Reading, draws: Draws) -> str:
        kind = reading.kind
        if kind in ("MOST_COMMON", "LEAST_COMMON"):
            return repr(draws.choice(reading.labels) if self.strategy == "random" else reading.labels[0])
        if kind in ("COMPARE", "BEFORE_AFTER"):
            return repr(draws.choice(COMPARISONS) if self.strategy == "random" else COMPARISONS[0])
        if kind == "USER_OF_TWO":
            users = [reading.fields["a"], reading.fields["b"]]
            if self.strategy == "majority":
                return f"max({users!r}, key=[user for _, user in lines].count)"
            return repr(draws.choice(users) if self.strategy == "random" else users[0])
        if kind in ("TOP_USER", "SECOND_USER", "USER_WITH_LABEL"):
            return self._pick("[user for _, user in lines]", draws)
        if kind in ("TOP_DATE", "SECOND_DATE"):
            form = "%m/%d/%Y" if reading.official else "%Y-%m-%d"
            return self._pick(
                f"[datetime.strptime(day, '%b %d, %Y').strftime({form!r}) for day, _ in lines]", draws
            )
        if kind == "FIRST_MONTH":
            days = "[datetime.strptime(day, '%b %d, %Y') for day, _ in lines]"
            month = f"min({days})" if self.strategy == "prior" else self._pick(days, draws)
            return f"{month}.strftime('%B %Y')"
        return "len(lines) // labels"

    def _pick(self, items: str, draws: Draws) -> str:
        if self.strategy == "majority":
            return f"Counter({items}).most_common(1)[0][0]"
        return f"random.Random({draws.below(1_000_000)}).choice({items})"
