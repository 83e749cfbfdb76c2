"""Rows of the published data set, as files hold them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oolong.sources.base import SourceError

if TYPE_CHECKING:
    pass


LABELLED_COLUMN = "context_window_text_with_labels"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """The context of one published row."""

    dataset: str
    """Hub name, folder of parquet files, or parquet file."""
    split: str
    row: int
    """Counted from 0, in the data set's order."""
    config: str | None = None
    """"dnd" or "toy_dnd" for oolong-real."""
    revision: str | None = None

    def text(self, *, with_labels: bool = False) -> str:
        """The context, with the label at every line if asked for (oolong-synth only).

        Raises:
            SourceError: the data set or the row cannot be had.
        """
        rows = _load(self.dataset, self.split, self.config, self.revision)
        if not 0 <= self.row < len(rows):
            raise SourceError(f"{self.dataset}, split {self.split}: no row {self.row}, it has {len(rows)}")
        column = LABELLED_COLUMN if with_labels else "context_window_text"
        if column not in rows.column_names:
            raise SourceError(f"{self.dataset}: no column {column!r}")
        return str(rows[self.row][column])


@lru_cache(maxsize=4)
def _load(dataset: str, split: str, config: str | None, revision: str | None) -> Any:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise SourceError(
            f"{dataset}: the published rows need the library datasets: install oolong[datasets]"
        ) from None
    path = Path(dataset).expanduser()
    try:
        if path.suffix == ".parquet":
            return datasets.load_dataset("parquet", data_files={split: str(path)}, split=split)
        return datasets.load_dataset(dataset, config, split=split, revision=revision)
    except Exception as error:  # the library raises what its many layers raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{dataset}, split {split}, cannot be read: {reason} (on the hub it needs the network once; a local folder or a "
            "parquet file works without)"
        ) from error
