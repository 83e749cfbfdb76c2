"""A sub-model that labels lines at a chosen accuracy. It is not a language model: it looks texts up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from oolong.draws import Draws
from oolong.sources.catalog import open_source
from oolong.sources.source import LabelledSource, SourceError

KNOWN_SOURCES = ("wordnet", "trec_coarse", "spam")

PROMPT = (
    "Give each numbered line below exactly one of these labels: {labels}.\nReply with one line for each number, in the form "
    "`number: label`, and with nothing else.\n\n{lines}"
)
"""The prompt of the reference policy. Other prompts are understood if they number lines or hold known texts."""


class Labeller:
    """Answers labelling prompts. Whether a text gets its right label depends only on the text and the seed, not on the order or
    the grouping of requests."""

    def __init__(
        self, *, accuracy: float = 0.95, seed: int = 0, sources: Sequence[str] | None = None
    ) -> None:
        """
        Args:
            accuracy: share of texts, from 0 to 1, that get their right label; the others get one of the other labels.
            seed: another seed gives other mistakes.
            sources: names or files of labelled text; None: all known sources on this machine.

        Raises:
            ValueError: the accuracy is not from 0 to 1.
            SourceError: at the first request, if one of `sources` is missing or cannot be read.
        """
        if not 0 <= accuracy <= 1:
            raise ValueError(f"accuracy must be from 0 to 1, not {accuracy}")
        self.accuracy = accuracy
        self.seed = seed
        self._names = sources

    @cached_property
    def sources(self) -> tuple[LabelledSource, ...]:
        """The sources of the labels, read at the first request."""
        if self._names is not None:
            return tuple(open_source(name) for name in self._names)
        found = []
        for name in KNOWN_SOURCES:
            try:
                found.append(open_source(name))
            except SourceError:
                continue  # not fetched on this machine, so no window is made of it either
        return tuple(found)

    def label(self, text: str, labels: Sequence[str] = ()) -> str | None:
        """The label that the sub-model gives to a text.

        Args:
            text: the text as a window holds it.
            labels: labels to choose from. They decide between sources that both hold the text, and are the wrong labels of
                mistakes. Empty: the labels of the source.

        Returns:
            A label; for an unknown text one of `labels`, or None if `labels` is empty.
        """
        for source in self.sources:
            gold = source.label_of(text)
            if gold is None or (labels and gold not in labels):
                continue
            draws = Draws("label", self.seed, text)
            if draws.chance(self.accuracy):
                return gold
            return draws.choice(
                [label for label in sorted(labels or source.labels) if label != gold] or [gold]
            )
        return Draws("guess", self.seed, text).choice(sorted(labels)) if labels else None

    def reply(self, prompt: str) -> str:
        """Answers a prompt with `number: label` for each numbered line, or else with a label for every line of a known text."""
        found = re.search(r"labels?:((?:\s*'[^'\n]+',?)+)", prompt)
        labels = re.findall(r"'([^'\n]+)'", found[1]) if found else []
        numbered = re.findall(r"(?m)^\s*(\d+)[.):] (.*\S)", prompt)
        out = []
        for number, text in numbered:
            label = self.label(_bare(text), labels)
            if label is not None:
                out.append(f"{number}: {label}")
        if out:
            return "\n".join(out)
        for line in prompt.splitlines():
            text = _bare(line)
            if any(source.label_of(text) is not None for source in self.sources):
                out.append(f"{text}: {self.label(text, labels)}")
        return (
            "\n".join(out)
            or "There is no line here that I can label. Give me numbered lines and the labels to choose from."
        )


def _bare(line: str) -> str:
    """The text of a line, without date, user and label."""
    return re.sub(r"^.*?\|\| Instance: |(?: \|\| Label: .*)$", "", line.strip())
