"""One example: a context, a question, its gold answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from oolong.published_rows import PublishedRow
from oolong.window import WindowSpec, cached_build

Mode = Literal["fixed", "official", "published"]


class ContextChangedError(ValueError):
    """A context came out other than it was when the example was made."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one context."""

    id: str
    seed: int
    source: str
    """The source's short name, or the published data set's name for its source."""
    split: str
    mode: Mode
    task_group: str
    task: str
    answer_type: str
    question: str
    answer: tuple[str, ...]
    """Right answers; see `oolong.questions.Question`."""
    input_subset: bool
    labels: tuple[str, ...]
    """All labels, in the window's order; empty where they are not known."""
    context: WindowSpec | PublishedRow
    n_rows: int
    chars: int
    """Characters of the context."""
    sha256: str
    """Of the context in UTF-8."""
    compat: tuple[str, ...] = ()
    """Defects of the published procedure that were switched on."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON. The answers are in it: not for the model's eyes."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        kind = "window" if isinstance(self.context, WindowSpec) else "row"
        context = self.context.to_dict() if isinstance(self.context, WindowSpec) else asdict(self.context)
        return {
            **data,
            "answer": list(self.answer),
            "labels": list(self.labels),
            "compat": list(self.compat),
            "context": {"kind": kind, **context},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Example:
        """Reads what `to_dict` wrote, also after a trip through JSON."""
        values = dict(data)
        for name in ("answer", "labels", "compat"):
            values[name] = tuple(values.get(name, ()))
        values["context"] = context_from_dict(values["context"])
        return cls(**values)

    def materialise(self) -> str:
        """The context's text. The last few windows of a process are remembered.

        Raises:
            SourceError: the text's source cannot be had.
            ContextChangedError: the text is not the one that the example was made for.
        """
        return materialise(self.context, self.sha256)

    def materialise_labelled(self) -> str:
        """The context with the label at the end of every line: the control task, and what golds are checked against.

        Raises:
            SourceError: the text's source cannot be had.
        """
        if isinstance(self.context, WindowSpec):
            return cached_build(self.context).text_with_labels
        return self.context.text(with_labels=True)


def context_from_dict(data: Mapping[str, Any]) -> WindowSpec | PublishedRow:
    """Reads the `context` of an example's JSON form."""
    values = dict(data)
    kind = values.pop("kind", None)
    if kind == "window":
        return WindowSpec.from_dict(values)
    if kind == "row":
        return PublishedRow(**values)
    raise ValueError(f"there is no kind of context {kind!r}; there are window and row")


def materialise(context: WindowSpec | PublishedRow | Mapping[str, Any], sha256: str | None = None) -> str:
    """The text of a context, given as object or in its JSON form.

    Raises:
        SourceError: the text's source cannot be had.
        ContextChangedError: its SHA-256 is not the given one.
    """
    if isinstance(context, Mapping):
        context = context_from_dict(context)
    text = cached_build(context).text if isinstance(context, WindowSpec) else context.text()
    if sha256 is not None and (found := text_sha256(text)) != sha256:
        raise ContextChangedError(
            f"the context has SHA-256 {found[:12]}, not {sha256[:12]}: its source or its maker changed"
        )
    return text


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
