"""The policy that plays OOLONG without a language model: for tests, benchmarks, and the environment's check of itself.

The root is scripted, and competent: it knows of a task only what a model sees. It reads the question from the first message
and what its code printed from the observations; it probes, parses and filters in code, has sub-models label what is left,
checks that all came, aggregates, looks at the candidate, and answers. The sub-model is `oolong.policies.labeller.Labeller`.

It keeps no state between requests: everything follows from the messages, so any number of rollouts may run at once, and equal
requests get equal replies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oolong.policies.labeller import PROMPT, Labeller
from oolong.policies.reading import Reading, labels_in_header, read

if TYPE_CHECKING:
    from rlm.testing import ChatRequest

CHUNK_CHARS = 8_000
"""Text that one sub-model gets: a prompt that a small model can still read line by line."""

MAX_TRIES = 3
"""Of one step, before the policy goes on with what it has."""


class ReferencePolicy:
    """Plays OOLONG. Give it to `rlm.testing` as a policy."""

    def __init__(
        self,
        *,
        accuracy: float = 0.95,
        seed: int = 0,
        sources: Sequence[str] | None = None,
        chunk_chars: int = CHUNK_CHARS,
    ) -> None:
        """
        Args:
            accuracy, seed, sources: of the sub-model, see `Labeller`.
            chunk_chars: characters of text in one labelling prompt.

        Raises:
            ValueError: the accuracy is not from 0 to 1.
        """
        self.labeller = Labeller(accuracy=accuracy, seed=seed, sources=sources)
        self.chunk_chars = chunk_chars

    def __call__(self, request: ChatRequest) -> str:
        messages = request.messages
        if is_root(messages):
            return self.root(messages)
        return self.labeller.reply(text_of(messages[-1]) if messages else "")

    def root(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The root's next reply.

        Args:
            messages: the chat so far: system, user, assistant, user, ...
        """
        seen = [text_of(message) for message in messages if message.get("role") == "user"]
        first, observations = (seen[0], seen[1:]) if seen else ("", [])
        reading = read(first)
        if reading is None:
            return _block(
                "I know no question of this form.", 'answer["content"] = "unknown"\nanswer["ready"] = True'
            )
        progress = Progress.of(reading, observations)
        last = seen[-1]
        if "no more code will run" in last:
            return progress.candidate or "unknown"
        steps = progress.steps(self.chunk_chars)
        if re.search(r"Turn (\d+)/\1\b", last):
            code = "\n".join([*steps.values(), _answer("candidate")])
            return _block("This is the last turn, so I do all that is left at once.", code)
        if not steps:
            return _block(
                f"The candidate follows from what I have seen. I answer: {progress.candidate}",
                _answer(progress.quoted),
            )
        say, code = next(iter(steps.items()))
        return _block(say, code)


class Progress:
    """How far a rollout has come, read off what its code printed."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.labels = reading.labels
        self.probed = False
        self.parsed = False
        self.labelled = not reading.needs_labels
        self.missing = 0
        self.candidate: str | None = None
        self.tries = 0

    @classmethod
    def of(cls, reading: Reading, observations: Sequence[str]) -> Progress:
        progress = cls(reading)
        for observation in observations:
            progress.see(observation)
        return progress

    @property
    def quoted(self) -> str:
        return repr(self.candidate or "unknown")

    def see(self, observation: str) -> None:
        """Takes in what one turn printed. A step that did not print what it should is tried again, up to a point."""
        before = (self.probed, self.parsed, self.labelled, self.candidate)
        if not self.probed:
            self.probed = "|| Instance: " in observation
            header = labels_in_header(observation)
            # The header has all labels; a question may list only those that occur in its part of the lines.
            self.labels = header or self.labels
        elif not self.parsed:
            self.parsed = re.search(r"\d+ lines, \d+ to consider", observation) is not None
        elif not self.labelled:
            if found := re.search(r"labelled \d+ of \d+ texts, (\d+) missing", observation):
                self.missing = int(found[1])
                self.labelled = self.missing == 0
        elif self.candidate is None and (found := re.search(r"(?m)^candidate: (.*)$", observation)):
            self.candidate = found[1]
        if before != (self.probed, self.parsed, self.labelled, self.candidate):
            self.tries = 0
            return
        self.tries += 1
        if self.tries >= MAX_TRIES:
            self.tries = 0
            if not self.probed:
                self.probed = True
            elif not self.parsed:
                self.parsed = True
            elif not self.labelled:
                self.labelled = True
            else:
                self.candidate = "unknown"

    def steps(self, chunk_chars: int) -> dict[str, str]:
        """What is left to do but for the answer itself: a sentence and the code, step by step."""
        steps: dict[str, str] = {}
        if not self.probed:
            steps["First I look at how the context is built."] = PROBE
        if not self.parsed:
            steps[
                "Every line has a date, a user and a text. I parse them and keep the lines that the question is about."
            ] = _parse(self.reading)
        if not self.labelled:
            if self.missing:
                steps[f"{self.missing} texts came back without a label. I ask for those again."] = AGAIN
            else:
                steps[
                    "Labels need reading: I give chunks of the texts to sub-models and check that every text got one."
                ] = _label(self.labels, chunk_chars)
        if self.candidate is None:
            steps["Now I aggregate, and look at the candidate before I answer."] = _aggregate(
                self.reading, self.labels
            )
        return steps


PROBE = """\
print(type(context).__name__, len(context))
print(context[:1500])
print("...")
print(context[-300:])"""

AGAIN = """\
ask(chunked([text for text in texts if text not in label_of]))
report()"""


def _parse(reading: Reading) -> str:
    condition = f" if {reading.condition}" if reading.condition else ""
    return f"""\
import re
from collections import Counter
from datetime import date, datetime
LINE = re.compile(r"Date: (\\w+ \\d+, \\d+) \\|\\| User: (\\d+) \\|\\| Instance: (.*)")
rows = []
for m in map(LINE.fullmatch, context.split("\\n")):
    if m:
        rows.append((datetime.strptime(m[1], "%b %d, %Y").date(), m[2], m[3]))
picked = [(day, user, text) for day, user, text in rows{condition}]
print(len(rows), "lines,", len(picked), "to consider")
print(picked[:2])"""


def _label(labels: Sequence[str], chunk_chars: int) -> str:
    listed = ", ".join(f"'{label}'" for label in labels)
    prompt = PROMPT.format(labels=listed, lines="")
    return f"""\
labels = {list(labels)!r}
texts = list(dict.fromkeys(text for _, _, text in picked))
label_of = {{}}
def chunked(texts):
    chunks, size = [], 0
    for text in texts:
        if not chunks or size + len(text) > {chunk_chars}:
            chunks.append([])
            size = 0
        chunks[-1].append(text)
        size += len(text) + 6
    return chunks
def ask(chunks):
    prompts = [{prompt!r} + "\\n".join(f"{{i}}. {{t}}" for i, t in enumerate(chunk, 1)) for chunk in chunks]
    for start in range(0, len(prompts), 20):
        replies = llm_query_batched(prompts[start:start + 20])
        for chunk, reply in zip(chunks[start:start + 20], replies):
            if isinstance(reply, SubcallError):
                print("a sub-call failed:", reply[:100])
                continue
            for number, label in re.findall(r"(?m)^\\s*(\\d+)[.:)]\\s*(.*?)\\s*$", reply):
                if 1 <= int(number) <= len(chunk) and label in labels:
                    label_of[chunk[int(number) - 1]] = label
def report():
    print("labelled", len(label_of), "of", len(texts), "texts,", len(texts) - len(label_of), "missing")
    print(Counter(label_of.values()).most_common())
ask(chunked(texts))
report()"""


def _aggregate(reading: Reading, labels: Sequence[str]) -> str:
    fields = {name: repr(value) for name, value in reading.fields.items()}
    code = AGGREGATES[reading.kind].format(labels=list(reading.labels or labels), **fields)
    if reading.needs_labels:
        code = (
            "known = [(day, user, label_of[text]) for day, user, text in picked if text in label_of]\n" + code
        )
    form = _form(reading)
    return f'{code}\ncandidate = {form}\nprint("candidate:", candidate)'


def _form(reading: Reading) -> str:
    """The expression of the answer in the form that the question asks for, over `found`."""
    kind = reading.kind
    if kind in ("MOST_COMMON", "LEAST_COMMON"):
        return 'f"Label: {found}"'
    if kind in ("TOP_USER", "SECOND_USER", "USER_WITH_LABEL", "USER_OF_TWO"):
        return 'f"User: {found}"'
    if kind in ("TOP_DATE", "SECOND_DATE"):
        return 'f"Date: {found:%m/%d/%Y}"' if reading.official else 'f"Date: {found}"'
    if reading.official and kind == "COMPARE":
        before, after = f"Answer: {reading.fields['a']} is ", f" {reading.fields['b']}"
        return f'{before!r} + {{1: "more common than", -1: "less common than", 0: "same frequency as"}}[found] + {after!r}'
    if kind in ("COMPARE", "BEFORE_AFTER"):
        return '"Answer: " + {1: "more common", -1: "less common", 0: "same frequency"}[found]'
    return 'f"Answer: {found}"'


_PLACE = """\
ranked = Counter({what} for day, user, text in picked).most_common()
print(ranked[:5])
"""
_MONTHS = """\
months = {{}}
for day, user, label in known:
    months.setdefault((day.year, day.month), Counter())[label] += 1
"""

AGGREGATES = {
    "MOST_COMMON": """\
counts = Counter(label for day, user, label in known)
found = max({labels}, key=lambda label: counts[label])""",
    "LEAST_COMMON": """\
counts = Counter(label for day, user, label in known)
found = min({labels}, key=lambda label: counts[label])""",
    "COMPARE": """\
counts = Counter(label for day, user, label in known)
found = (counts[{a}] > counts[{b}]) - (counts[{a}] < counts[{b}])""",
    "HOW_MANY": "found = sum(label == {label} for day, user, label in known)",
    "TOP_USER": _PLACE.replace("{what}", "user") + "found = ranked[0][0]",
    "SECOND_USER": _PLACE.replace("{what}", "user") + "found = ranked[1][0]",
    "USER_WITH_LABEL": """\
ranked = Counter(user for day, user, label in known if label == {label}).most_common()
print(ranked[:5])
found = ranked[0][0] if ranked else "unknown\"""",
    "USER_OF_TWO": """\
counts = Counter(user for day, user, label in known if label == {label})
found = max([{a}, {b}], key=lambda user: counts[user])""",
    "TOP_DATE": _PLACE.replace("{what}", "day") + "found = ranked[0][0]",
    "SECOND_DATE": _PLACE.replace("{what}", "day") + "found = ranked[1][0]",
    "DATES_N_TIMES": """\
found = list(Counter(day for day, user, text in picked).values()).count(int({n}))""",
    "BEFORE_AFTER": """\
cut = date.fromisoformat({day})
before = [label for day, user, label in known if day < cut]
after = [label for day, user, label in known if day > cut]
x, y = before.count({label}) * len(after), after.count({label}) * len(before)
found = (x > y) - (x < y)""",
    "FIRST_MONTH": _MONTHS
    + """\
firsts = [month for month in sorted(months) if months[month][{a}] > months[month][{b}]]
found = date(*firsts[0], 1).strftime("%B %Y") if firsts else "unknown\"""",
    "MONTHS_MORE": _MONTHS + "found = sum(counts[{a}] > counts[{b}] for counts in months.values())",
    "MONTHS_TOP": _MONTHS
    + """\
found = sum(all(counts[{label}] > n for label, n in counts.items() if label != {label}) and counts[{label}] > 0
            for counts in months.values())""",
}
"""How each kind of question is answered from `picked` (day, user, text) or `known` (day, user, label)."""


def _answer(value: str) -> str:
    return f'answer["content"] = {value}\nanswer["ready"] = True'


def _block(say: str, code: str) -> str:
    return f"{say}\n\n```repl\n{code}\n```"


def is_root(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a request is of a run with a REPL, rather than a sub-call: its first user message counts turns."""
    first = next((text_of(message) for message in messages if message.get("role") == "user"), "")
    return re.search(r"(?m)^Turn 1/\d+", first) is not None


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, also where its content is a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


policy = ReferencePolicy()
"""With the default accuracy, for `python -m rlm.testing oolong.policies.reference:policy`."""
