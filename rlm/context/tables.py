"""Tables of pandas and pyarrow as contexts. Neither library is imported here: a program that has a table has imported its
library."""

from __future__ import annotations

import hashlib
import marshal
import os
import pickle
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rlm.context.files import memory_file
from rlm.context.plain_values import SCALARS
from rlm.errors import ContextError

_MOST_COLUMNS: Final = 30


@dataclass(frozen=True, slots=True)
class Table:
    """An encoded table: pickle (protocol 5) for pandas, Arrow's stream format for pyarrow."""

    kind: str
    """"dataframe", "series" or "table"."""
    rows: int
    summary: str
    file: int
    """A descriptor of the encoded form."""


def encode(value: Any) -> Table | None:
    """Encodes a table. Returns None if `value` is no table.

    Raises:
        ContextError: the table holds something that cannot be sent.
    """
    kind = _kind(value)
    if kind is None:
        return None
    try:
        file = memory_file(lambda fd: _write(kind, value, fd))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # pickling runs code of the objects in the table
        raise ContextError(
            f"the {NAMES[kind]} holds something that cannot be sent: {type(error).__name__}: {error}"
        ) from error
    return Table(kind, len(value), _summary(kind, value), file)


NAMES: Final = {"dataframe": "pandas DataFrame", "series": "pandas Series", "table": "pyarrow Table"}
"""The message's name for each kind."""


def _kind(value: Any) -> str | None:
    for module, name, kind in (
        ("pandas", "DataFrame", "dataframe"),
        ("pandas", "Series", "series"),
        ("pyarrow", "Table", "table"),
    ):
        library = getattr(sys.modules.get(module), name, None)
        if isinstance(library, type) and isinstance(value, library):
            return kind
    return None


def _write(kind: str, value: Any, fd: int) -> None:
    with os.fdopen(os.dup(fd), "wb") as file:
        if kind == "table":
            from pyarrow import ipc

            with ipc.new_stream(file, value.schema) as stream:
                stream.write_table(value)
        else:
            pickle.dump(value, file, protocol=5)


def _summary(kind: str, value: Any) -> str:
    rows = f"{len(value):,} row{'' if len(value) == 1 else 's'}"
    if kind == "series":
        return f"a pandas Series of {rows} ({value.dtype})"
    columns = [f"{_bounded(str(name))} ({dtype})" for name, dtype in _columns(kind, value)]
    shown = ", ".join(columns[:_MOST_COLUMNS]) + (", ..." if len(columns) > _MOST_COLUMNS else "")
    count = f"{len(columns):,} column{'' if len(columns) == 1 else 's'}"
    return f"a {NAMES[kind]} of {rows} x {count}{': ' if shown else ''}{shown}"


def _columns(kind: str, value: Any) -> Iterable[tuple[Any, Any]]:
    if kind == "table":
        return [(field.name, field.type) for field in value.schema]
    return zip(value.columns, value.dtypes, strict=True)


def _bounded(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def digest(kind: str, file: int) -> str:
    """SHA-256 of names, types and values, as hex. The encoded form is not hashed: it differs between versions of a library.

    Args:
        file: the descriptor that `encode` made.
    """
    total = hashlib.sha256(kind.encode())
    value = _read(kind, file)
    if kind == "table":
        for field, column in zip(value.schema, value.columns, strict=True):
            _add(total, field.name, field.type)
            _add_items(total, column.to_pylist())
    else:
        columns = [(value.name, value)] if kind == "series" else value.items()
        index = value.index
        _add(total, list(index.names), len(index))
        for level in range(index.nlevels):
            _add_array(total, index.get_level_values(level))
        for name, column in columns:
            _add(total, name)
            _add_array(total, column)
    return total.hexdigest()


def _read(kind: str, file: int) -> Any:
    """The table as it was when it was encoded; the caller's table may have changed since."""
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(0)
        if kind == "table":
            from pyarrow import ipc

            return ipc.open_stream(stream).read_all()
        return pickle.load(stream)


def _add(total: Any, *parts: Any) -> None:
    total.update(repr([repr(part) for part in parts]).encode("utf-8", "surrogatepass"))


def _add_array(total: Any, array: Any) -> None:
    """A pandas Series or Index."""
    _add(total, array.dtype)
    if array.dtype.kind in "biufcmM" and not hasattr(array.dtype, "na_value"):  # a numpy dtype
        total.update(array.to_numpy().tobytes())
    else:
        _add_items(total, array.tolist())


def _add_items(total: Any, items: Sequence[Any]) -> None:
    total.update(marshal.dumps([item if type(item) in SCALARS else repr(item) for item in items], 2))
