"""The contexts of the published rows, read from the data set through the library `datasets`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from oolong.sources.source import SourceError

TEXT_COLUMN = "context_window_text"
LABELLED_COLUMN = "context_window_text_with_labels"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """Description of the context of one published row."""

    dataset: str
    """Hub name, folder of parquet files, or parquet file."""
    split: str
    row: int
    """Number of the row in the data set's order, from 0."""
    config: str | None = None
    """"dnd" or "toy_dnd" for oolong-real."""
    revision: str | None = None
    """Revision of the data set on the hub; None: the newest."""
    kind: Literal["row"] = "row"
    """Distinguishes the JSON form from that of a `WindowSpec`."""

    def text(self, *, with_labels: bool = False) -> str:
        """Reads the context.

        Args:
            with_labels: read the form that has the label at the end of every line; oolong-synth only.

        Raises:
            SourceError: the data set cannot be read, or has no such row or column.
        """
        rows = load_rows(self.dataset, self.split, self.config, self.revision)
        if not 0 <= self.row < len(rows):
            raise SourceError(f"{self.dataset}, split {self.split}: no row {self.row}, it has {len(rows)}")
        column = LABELLED_COLUMN if with_labels else TEXT_COLUMN
        if column not in rows.column_names:
            raise SourceError(f"{self.dataset}: no column {column!r}")
        return str(rows[self.row][column])


@lru_cache(maxsize=4)
def load_rows(dataset: str, split: str, config: str | None, revision: str | None) -> Any:
    """Opens a data set. A process remembers the last four.

    Args:
        dataset, split, config, revision: as the fields of `PublishedRow`.

    Returns:
        A `datasets.Dataset`.

    Raises:
        SourceError: the data set cannot be read, or the library `datasets` is not installed.
    """
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
    except Exception as error:  # the library documents no errors of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{dataset}, split {split}, cannot be read: {reason} (a data set on the hub needs the network once; a local folder "
            "or a parquet file does not)"
        ) from error
