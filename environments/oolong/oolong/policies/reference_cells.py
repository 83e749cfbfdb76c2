"""The code that the reference policy writes, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

from oolong.policies.labeller import PROMPT
from oolong.policies.reading import Reading

PROBE = """\
print(type(context).__name__, len(context))
print(context[:1500])
print("...")
print(context[-300:])"""
"""Shows the beginning and the end of the context."""

AGAIN = """\
ask(chunked([text for text in texts if text not in label_of]))
report()"""
"""Asks again for the labels that are missing, with the functions of `label`."""


def parse(reading: Reading) -> str:
    """Parses the lines into `rows`, and keeps those that the question is about in `picked`: (day, user, text)."""
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


def label(labels: Sequence[str], chunk_chars: int) -> str:
    """Asks sub-models to label the texts of `picked`, and collects the labels in `label_of`.

    Args:
        labels: the labels to choose from.
        chunk_chars: characters of text in one prompt.
    """
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


def aggregate(reading: Reading, labels: Sequence[str]) -> str:
    """Works out `found` from `picked` and `label_of`, and prints the answer as `candidate`."""
    fields = {name: repr(value) for name, value in reading.fields.items()}
    code = AGGREGATES[reading.kind].format(labels=list(reading.labels or labels), **fields)
    if reading.needs_labels:
        code = (
            "known = [(day, user, label_of[text]) for day, user, text in picked if text in label_of]\n" + code
        )
    form = _form(reading)
    return f'{code}\ncandidate = {form}\nprint("candidate:", candidate)'


def _form(reading: Reading) -> str:
    """The expression that puts `found` into the form that the question asks for."""
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
"""The code for each kind of question. It sets `found` from `picked` (day, user, text) or `known` (day, user, label)."""


def set_answer(expression: str) -> str:
    """The cell that ends the run with the value of an expression as its answer."""
    return f'answer["content"] = {expression}\nanswer["ready"] = True'
