"""The description that a window is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from typing import Any, Literal

from oolong.sources.source import Split

Layout = Literal["own", "official"]

MAX_ROWS = 500_000
"""Most lines of a window."""


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """Everything that a window is made from. Small and hashable; `dataclasses.asdict` gives plain JSON.

    Exactly one of `rows`, `chars` and `tokens` gives the size of the window. `oolong.window.resolve` turns the other
    two into `rows`.
    """

    source: str = "wordnet"
    """A name, the path of a file, or a source's `ref` as JSON text."""
    split: Split = "train"
    seed: int = 0
    rows: int | None = None
    """Number of lines."""
    chars: int | None = None
    """Most characters of the window; it has nearly as many."""
    tokens: int | None = None
    """Approximate tokens, at 2.7 characters a token; in the official layout by the published budget of the source."""
    skew: tuple[int, int] = (2, 6)
    """Bounds of the temperature T. Each label gets the weight w**(1/T), w uniform from 1 to 30, and a softmax turns the
    weights into shares. A lower T gives more skewed shares."""
    first_day: str = "2022-02-16"
    last_day: str = "2025-06-21"
    """Dates are uniform between these two, both included, in ISO form. In our layout a fifth of the lines lies on few
    busy days."""
    layout: Layout = "own"
    source_sha256: str | None = None
    """SHA-256 of the source's rows, set by `resolve`. A window is not built from other rows."""
    kind: Literal["window"] = "window"
    """Distinguishes the JSON form from that of a `PublishedRow`."""

    def __post_init__(self) -> None:
        if [self.rows, self.chars, self.tokens].count(None) != 2:
            raise ValueError("give exactly one of rows, chars and tokens")
        size = self.rows or self.chars or self.tokens or 0
        if size < 1:
            raise ValueError("a window's size is at least 1")
        if self.rows is not None and self.rows > MAX_ROWS:
            raise ValueError(f"a window has at most {MAX_ROWS:,} rows")
        if self.layout not in ("own", "official"):
            raise ValueError(f"there is no layout {self.layout!r}; layouts are own and official")
        low, high = self.skew
        if not 1 <= low <= high:
            raise ValueError(f"skew is a pair of temperatures from 1 up, the lower first, not {self.skew}")
        if date.fromisoformat(self.first_day) > date.fromisoformat(self.last_day):
            raise ValueError(f"first_day {self.first_day} is after last_day {self.last_day}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WindowSpec:
        """Reads what `dataclasses.asdict` made of a spec, also after a trip through JSON.

        Raises:
            ValueError: a field is unknown, or has a value that is not allowed.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"a window has no field {unknown[0]!r}")
        values = dict(data)
        if "skew" in values:
            values["skew"] = tuple(values["skew"])
        return cls(**values)
