"""Sources of labelled text: the lines that windows are made of.

A source is a set of labels and rows of (text, label). Its rows are cleaned when they are read: line breaks inside a text
become spaces, a text that occurs twice is kept once, and a text that occurs with two labels is dropped. So every text has
exactly one right label. `train` and `eval` share no text: the hash of a text decides its split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args

Split = Literal["train", "eval", "all"]

MAX_LABELS = 100
"""With more different labels than this, the label column is taken to be a wrong one."""


class SourceError(ValueError):
    """Labelled text or a published row is missing or cannot be read. The message names the file and, if known, the line."""


class Row(NamedTuple):
    """One labelled text."""

    text: str
    label: str


class LabelledSource(Protocol):
    """Labelled text. Immutable; safe to share between threads."""

    @property
    def id(self) -> str:
        """Short name; part of every seed."""
        ...

    @property
    def licence(self) -> str:
        """What is known about the licence of the texts, one line."""
        ...

    @property
    def items(self) -> str:
        """The name of what a line holds, in the plural: "text messages"."""
        ...

    @property
    def meaning(self) -> str:
        """What the label of a line says, as the end of "The label says ...": "whether it is spam"."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, sorted."""
        ...

    @property
    def ref(self) -> dict[str, Any]:
        """What `open_source` needs to find this source again: plain JSON."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of all rows after cleaning. Equal on two machines that hold the same text."""
        ...

    def rows(self, split: Split) -> Sequence[Row]:
        """The rows of a split, sorted by text."""
        ...

    def label_of(self, text: str) -> str | None:
        """The right label of a text in the form that windows hold; None if the source does not have the text."""
        ...


def one_line(text: str) -> str:
    """`text` with every kind of line break replaced by a space, and stripped."""
    return " ".join(text.splitlines()).strip()


def _key(text: str) -> str:
    """A form that is equal for texts that differ only in case and white space."""
    return " ".join(text.casefold().split())


def split_of(text: str) -> Split:
    """The split of a text: "train" for one half of all hashes, "eval" for the other. Texts that differ only in case and
    white space have the same split."""
    first = hashlib.sha256(_key(text).encode("utf-8")).digest()[0]
    return "train" if first < 128 else "eval"


def clean(rows: Iterable[Row]) -> list[Row]:
    """Rows in the form that windows hold, sorted by text: one line each, none empty, none twice, none with two labels."""
    kept: dict[str, Row] = {}
    ambiguous: set[str] = set()
    for row in rows:
        text = one_line(row.text)
        key = _key(text)
        if not key:
            continue
        first = kept.setdefault(key, Row(text, row.label))
        if first.label != row.label:
            ambiguous.add(key)
    return sorted(row for key, row in kept.items() if key not in ambiguous)


class TextSource:
    """A source over rows in memory."""

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        id: str,  # noqa: A002 - the field's name
        licence: str,
        items: str,
        meaning: str,
        ref: Mapping[str, Any] | None = None,
        where: str | None = None,
    ) -> None:
        """
        Args:
            rows: labelled texts in any order, not yet cleaned.
            id: short name, part of every seed.
            licence: what is known about the licence, in one line.
            items: name of what a line holds, in the plural.
            meaning: the end of "The label says ...".
            ref: reference by which `open_source` finds the source again; `{"id": id}` if None.
            where: place that error messages name; the id if None.

        Raises:
            SourceError: no row is usable, there are fewer than two labels, or a label cannot be used.
        """
        where = where or id
        self.id = id
        self.licence = licence
        self.items = items
        self.meaning = meaning
        self.ref: dict[str, Any] = dict(ref or {"id": id})
        self._rows = tuple(clean(rows))
        if not self._rows:
            raise SourceError(f"{where}: it holds no labelled text")
        self.labels: tuple[str, ...] = tuple(sorted({row.label for row in self._rows}))
        _check_labels(self.labels, len(self._rows), where)

    @cached_property
    def _by_split(self) -> dict[Split, tuple[Row, ...]]:
        splits: dict[Split, list[Row]] = {"train": [], "eval": []}
        for row in self._rows:
            splits[split_of(row.text)].append(row)
        return {"all": self._rows, **{name: tuple(rows) for name, rows in splits.items()}}

    @cached_property
    def _labels_by_text(self) -> dict[str, str]:
        return dict(self._rows)

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for text, label in self._rows:
            digest.update(f"{label}\t{text}\n".encode())
        return digest.hexdigest()

    def rows(self, split: Split) -> Sequence[Row]:
        """The rows of a split, sorted by text.

        Raises:
            SourceError: there is no such split.
        """
        if split not in get_args(Split):
            raise SourceError(f"{self.id}: there is no split {split!r}; splits are train, eval and all")
        return self._by_split[split]

    def label_of(self, text: str) -> str | None:
        return self._labels_by_text.get(text)

    def __repr__(self) -> str:
        return f"TextSource({self.id!r}, {len(self._rows)} rows, labels {', '.join(self.labels)})"


def _check_labels(labels: Sequence[str], rows: int, where: str) -> None:
    if len(labels) < 2:
        raise SourceError(
            f"{where}: all rows have the label {labels[0]!r}; questions need at least two labels"
        )
    if len(labels) > MAX_LABELS:
        raise SourceError(
            f"{where}: {len(labels)} different labels in {rows} rows; is that the label column?"
        )
    seen: dict[str, str] = {}
    for label in labels:
        if not label.strip() or label != one_line(label):
            raise SourceError(
                f"{where}: {label!r} cannot be a label: it is empty, has white space around it, or has a line break"
            )
        if "'" in label or '"' in label or "||" in label:
            raise SourceError(
                f"{where}: {label!r} cannot be a label: questions quote labels, so a label must not hold quotes or ||"
            )
        other = seen.setdefault(label.casefold(), label)
        if other != label:
            raise SourceError(f"{where}: the labels {other!r} and {label!r} differ only in case")
