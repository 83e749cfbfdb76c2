"""One example: a question, its right answers, and the description of its context."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from oolong.published_rows import PublishedRow
from oolong.window import cached_build
from oolong.window_spec import WindowSpec
from rlm_train.context_hash import check_context

Mode = Literal["fixed", "official", "published"]


@dataclass(frozen=True)
class Example:
    """One question about one context.

    The context is described, not held: `materialise` makes it in any process. `oolong.task.OolongData` is this class
    as verifiers' task data, under the same field names.
    """

    id: str
    """Name of the example, unique in its set."""
    seed: int
    source: str
    """Short name of the source of text; in mode "published" the data set's name for it."""
    split: str
    mode: Mode
    task_group: str
    """"counting", "user", "timeline"; "real" for rows of oolong-real."""
    task_type: str
    """MOST_FREQ, NUMERIC_ONE_CLASS, ...: the column `task` of the published rows."""
    answer_type: str
    prompt: str
    """The question."""
    answer: tuple[str, ...]
    """The right answers: each of them alone is right. `oolong.questions.Question` describes their form."""
    input_subset: bool
    """Whether the question is about a part of the lines."""
    labels: tuple[str, ...]
    """All labels, in the window's order; empty where they are not known."""
    context: WindowSpec | PublishedRow
    """The description that the context is made from."""
    n_rows: int
    """Lines of the context."""
    context_size: int
    """Characters of the context."""
    context_sha256: str
    """SHA-256 of the context in UTF-8, in hexadecimal digits."""
    compat: tuple[str, ...] = ()
    """Defects of the published procedure that were switched on."""

    @property
    def question(self) -> str:
        return self.prompt

    def to_dict(self) -> dict[str, Any]:
        """The example as plain JSON. It holds the answers, so the model must not see it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Example:
        """Reads what `to_dict` wrote, also after a trip through JSON.

        Raises:
            ValueError: the context is of an unknown kind, or has an unknown field.
        """
        values = dict(data)
        for name in ("answer", "labels", "compat"):
            values[name] = tuple(values.get(name, ()))
        values["context"] = _read_context(values["context"])
        return cls(**values)

    def materialise(self) -> str:
        """Makes the context's text. A process remembers its last few windows.

        Raises:
            SourceError: the source of the text is missing or cannot be read.
            ContextMismatchError: the text is not the one that the example was made for.
        """
        context = self.context
        text = cached_build(context).text if isinstance(context, WindowSpec) else context.text()
        check_context(self.id, text_sha256(text), self.context_sha256)
        return text

    def materialise_labelled(self) -> str:
        """Makes the context with its label at the end of every line: for the control task, and for checks of answers.

        Raises:
            SourceError: the source of the text is missing or cannot be read.
        """
        if isinstance(self.context, WindowSpec):
            return cached_build(self.context).text_with_labels
        return self.context.text(with_labels=True)


def _read_context(data: Mapping[str, Any]) -> WindowSpec | PublishedRow:
    kind = data.get("kind")
    if kind == "window":
        return WindowSpec.from_dict(data)
    if kind == "row":
        return PublishedRow(**data)
    raise ValueError(f"there is no kind of context {kind!r}; the kinds are window and row")


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
