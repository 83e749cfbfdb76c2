"""Sources that are files of labelled text: CSV, TSV, JSONL or parquet."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oolong.sources.source import LabelledSource, Row, SourceError, TextSource

FILE_FIELDS = ("path", "text_column", "label_column", "items", "meaning")
FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


def looks_like_file(name: str) -> bool:
    """Whether the name of a source is the path of a file."""
    return "/" in name or os.sep in name or name.lower().endswith(FORMATS)


def file_ref(
    path: str | Path,
    *,
    text_column: str = "text",
    label_column: str = "label",
    items: str = "texts",
    meaning: str = "which class the text belongs to",
) -> dict[str, Any]:
    """The reference of a file source. Its path is absolute, so it names the same file in every process."""
    absolute = str(Path(path).expanduser().resolve())
    return {
        "path": absolute,
        "text_column": text_column,
        "label_column": label_column,
        "items": items,
        "meaning": meaning,
    }


def read_file(
    path: str,
    text_column: str = "text",
    label_column: str = "label",
    items: str = "texts",
    meaning: str = "which class the text belongs to",
) -> LabelledSource:
    """Reads a file of labelled text. Its suffix names its format; CSV and TSV files have a header line.

    Args:
        path: path of the file.
        text_column: column, or JSON field, of the text.
        label_column: column, or JSON field, of the label; a value that is not a string is turned into one.
        items: name of what a line holds, in the plural.
        meaning: the end of "The label says ...".

    Raises:
        SourceError: the file cannot be read, a column is missing, a row has no text or label, or a label cannot be used.
    """
    file = Path(path)
    readers = {
        ".csv": _csv_records,
        ".tsv": _csv_records,
        ".jsonl": _jsonl_records,
        ".parquet": _parquet_records,
    }
    suffix = file.suffix.lower()
    if suffix not in readers:
        raise SourceError(f"{path}: a file of labelled text must end in one of {', '.join(FORMATS)}")
    rows = []
    digest = hashlib.sha256()
    try:
        for place, record in readers[suffix](file, text_column, label_column):
            text = _cell(record.get(text_column), f"{path}, {place}", text_column)
            label = _cell(record.get(label_column), f"{path}, {place}", label_column)
            digest.update(f"{label}\t{text}\n".encode())
            rows.append(Row(text, label))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text: byte {error.start} ({error.reason})") from None
    # The id depends on the content, so that two files called data.csv do not share windows.
    return TextSource(
        rows,
        id=f"{file.stem}-{digest.hexdigest()[:8]}",
        licence=f"as {file.name} says",
        items=items,
        meaning=meaning,
        ref=file_ref(path, text_column=text_column, label_column=label_column, items=items, meaning=meaning),
        where=path,
    )


def _cell(value: Any, where: str, column: str) -> str:
    if isinstance(value, float) and value != value:  # NaN: a missing number in parquet
        value = None
    if value is None or (isinstance(value, str) and not value.strip()):
        raise SourceError(f"{where}: no value for {column!r}")
    if isinstance(value, list | dict):
        raise SourceError(f"{where}: {column!r} holds a {type(value).__name__}, not text")
    text = value if isinstance(value, str) else str(value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(
            f"{where}: {column!r} holds half of a surrogate pair, which is not valid text"
        ) from None
    return text.strip()


def _need_columns(found: list[str], wanted: tuple[str, ...], where: str) -> None:
    for column in wanted:
        if column not in found:
            raise SourceError(
                f"{where}: no column {column!r}; there are {', '.join(map(repr, found)) or 'none'}"
            )


Records = Iterator[tuple[str, Mapping[str, Any]]]


def _csv_records(path: Path, text_column: str, label_column: str) -> Records:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            _need_columns(list(reader.fieldnames or ()), (text_column, label_column), f"{path}, line 1")
            for record in reader:
                if None in record:
                    raise SourceError(f"{path}, line {reader.line_num}: more fields than the header names")
                yield f"line {reader.line_num}", record
        except csv.Error as error:
            raise SourceError(f"{path}, line {reader.reader.line_num}: {error}") from None


def _jsonl_records(path: Path, text_column: str, label_column: str) -> Records:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise SourceError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(record, dict):
                raise SourceError(
                    f"{path}, line {number}: expected a JSON object, found {type(record).__name__}"
                )
            _need_columns(list(record), (text_column, label_column), f"{path}, line {number}")
            yield f"line {number}", record


def _parquet_records(path: Path, text_column: str, label_column: str) -> Records:
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise SourceError(f"{path}: parquet files need pyarrow: install oolong[datasets]") from None
    try:
        with parquet.ParquetFile(path) as file:
            _need_columns(list(file.schema_arrow.names), (text_column, label_column), str(path))
            number = 0
            for batch in file.iter_batches(columns=[text_column, label_column]):
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except arrow.ArrowException as error:
        raise SourceError(f"{path}: not a parquet file: {error}") from None
