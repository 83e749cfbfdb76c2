"""The input of a run, encoded once.

The encoded form of a str is UTF-8, with lone surrogates as three bytes each. The encoded form of bytes is the bytes
themselves. Containers are encoded in version 2 of Python's marshal format: it keeps plain values exactly, has no references
between values, sorts sets, and is read at C speed without importing or running anything. Tables have forms of their own
(`rlm.context.tables`).
"""

from __future__ import annotations

import asyncio
import hashlib
import marshal
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rlm._wording import a
from rlm.context import files, tables
from rlm.context.plain_values import advice, to_plain
from rlm.errors import ContextError

MARSHAL_VERSION: Final = 2
_KINDS: Final = ((str, "str"), (bytes | bytearray, "bytes"), (list, "list"), (tuple, "tuple"), (dict, "dict"))
_UNITS: Final = {"str": "character", "bytes": "byte", "dataframe": "row", "series": "row", "table": "row"}


class Context:
    """An input. It is hashed and encoded once, and shared by every REPL that gets it. It is immutable: later changes of the
    original value or file have no effect on it. It can be made of:

    - a `str`, `bytes`, or a `list`, `tuple` or `dict` of plain values at any depth. Plain values are str, bytes, int, float,
      complex, bool and None, and lists, tuples, dicts, sets and frozensets of plain values. An instance of a subclass
      (Counter, namedtuple, IntEnum, bytearray for bytes, ...) is sent as the plain value that it equals.
    - the `pathlib.Path` of a file: the code sees the file's text if it is UTF-8, otherwise its bytes. From a list of paths the
      code sees a list of dicts with "path" and "text" ("data", bytes, if it is not UTF-8). From a dict of names and paths
      it sees a dict of names and texts.
    - documents of a library, alone or among plain values: objects with a text (`page_content`, `text` or `content`) and a
      mapping `metadata` (or `meta`). The code sees dicts with "text" and "metadata".
    - a pandas DataFrame or Series, or a pyarrow Table: the code sees a copy.

    Raises:
        ContextError: the value is of another type, or holds something that cannot be sent, or a file cannot be read. The
            message says where.
    """

    kind: str
    """The type that the code sees: "str", "bytes", "list", "tuple", "dict", "dataframe", "series" or "table"."""
    size: int
    """The number of characters of a str, of bytes of bytes, of rows of a table, of items of a container."""
    summary: str
    """One line without a full stop: "a str of 1,234 characters"."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._lock = threading.Lock()
        self._plain: str | bytes = b""
        self._encoded_size: int | None = None
        self._file: int | None = None
        self._close_file: Callable[[], object] | None = None
        self._closed = False
        self._sha256: str | None = None
        table = tables.encode(value)
        if table is not None:
            self.kind, self.size, self.summary = table.kind, table.rows, table.summary
            self._keep(table.file)
        elif isinstance(value, Path):
            file, characters = files.copy(value)
            self._keep(file)
            self.kind = "bytes" if characters is None else "str"
            self.size = self.encoded_size if characters is None else characters
            self.summary = f"the file {value.name}: {self._count()}"
        else:
            self._encode(value)

    def _encode(self, value: Any) -> None:
        value = files.document(files.documents(value))
        self._value = value
        for types, kind in _KINDS:
            if isinstance(value, types):
                self.kind = kind
                break
        else:
            raise ContextError(
                "a context must be a str, bytes, list, tuple or dict, a file's path, documents or a table of pandas or "
                f"pyarrow, and this is {a(value)}{advice(value)}"
            )
        sent = to_plain(value, "context", files.document)
        self._plain = sent if isinstance(sent, str | bytes) else _marshal(sent)
        self.size = len(sent)
        self.summary = self._count()
        if isinstance(self._plain, bytes):
            self._encoded_size = len(self._plain)

    def _keep(self, file: int) -> None:
        self._file = file
        self._encoded_size = os.fstat(file).st_size
        self._close_file = weakref.finalize(self, os.close, file)

    def _count(self) -> str:
        return f"a {self.kind} of {self.size:,} {self.unit}"

    @classmethod
    def of(cls, value: Any) -> Context:
        """A Context of a value; the value itself if it is a Context.

        Raises:
            ContextError: see `Context`.
        """
        return value if isinstance(value, cls) else cls(value)

    @classmethod
    async def made(cls, value: Any) -> Context:
        """Does what `of` does, in a thread if that may take long: if a file is read or a container is copied."""
        if isinstance(value, str | bytes | cls):
            return cls.of(value)
        return await asyncio.to_thread(cls.of, value)

    def close(self) -> None:
        """Releases the value and closes the file. A closed context still has `kind`, `size` and `summary`, and `sha256` if it
        was computed before; it cannot be sent. A context that is not closed is released when it is garbage-collected."""
        if not self._lock.acquire(blocking=False):
            return  # an abandoned thread still encodes or hashes; the object is collected when that thread is done
        try:
            self._closed = True
            self._value, self._plain, self._file = None, b"", None
            if self._close_file is not None:
                self._close_file()
        finally:
            self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this context is closed")

    @property
    def value(self) -> Any:
        """The value as the code sees it: the object that was given, or the content of files and documents. The text of a
        single file is decoded at each access.

        Raises:
            ValueError: the context is closed.
        """
        self._check_open()
        if not isinstance(self._value, Path):
            return self._value
        data = b"".join(self.chunks())
        return data.decode() if self.kind == "str" else data

    @property
    def unit(self) -> str:
        """The unit of `size`: "characters", "bytes", "rows" or "items"; in the singular if `size` is 1."""
        unit = _UNITS.get(self.kind, "item")
        return unit if self.size == 1 else unit + "s"

    @property
    def sha256(self) -> str:
        """Hex digest of the encoded form, or of a table's names, types and values. It is the same for equal values on every
        machine. The order of a dict counts, because the code can see it."""
        with self._lock:
            if self._sha256 is None:
                if self.kind in tables.NAMES and self._file is not None:
                    self._sha256 = tables.digest(self.kind, self._file)
                else:
                    digest = hashlib.sha256()
                    for chunk in self.chunks():
                        digest.update(chunk)
                    self._sha256 = digest.hexdigest()
            return self._sha256

    @property
    def encoded_size(self) -> int:
        """Bytes of the encoded form."""
        if self._encoded_size is None:
            self._check_open()
            text = self._plain
            assert isinstance(text, str)
            self._encoded_size = len(text) if text.isascii() else sum(map(len, self.chunks()))
        return self._encoded_size

    def describe(self) -> dict[str, Any]:
        """kind, size and sha256: logs hold these in place of the value."""
        return {"kind": self.kind, "size": self.size, "sha256": self.sha256}

    def __repr__(self) -> str:
        return f"<Context: {self.kind} of {self.size:,}>"

    def chunks(self) -> Iterator[bytes]:
        """The encoded form in chunks of about 1 MB.

        Raises:
            ValueError: the context is closed.
        """
        self._check_open()
        if self._file is not None:
            yield from files.chunks(self._file)
            return
        data = self._plain
        for start in range(0, len(data), files.CHUNK):
            chunk = data[start : start + files.CHUNK]
            yield chunk.encode("utf-8", "surrogatepass") if isinstance(chunk, str) else chunk

    def file(self) -> int:
        """A descriptor of an unnamed file in memory that holds the encoded form. On Linux the file is sealed: no process can
        change it. The first call makes the file, which takes about a second per GB. This object owns the descriptor, and
        closes it when it is closed or collected.

        Raises:
            OSError: no memory or no descriptor is left.
            ValueError: the context is closed.
        """
        with self._lock:
            self._check_open()
            if self._file is None:
                self._keep(files.memory_file(self._write))
            assert self._file is not None
            return self._file

    def _write(self, fd: int) -> None:
        for chunk in self.chunks():
            files.write_all(fd, chunk)

    @property
    def has_file(self) -> bool:
        """Whether the file is made already, so that `file` returns at once."""
        return self._file is not None


def _marshal(plain: Any) -> bytes:
    try:
        return marshal.dumps(plain, MARSHAL_VERSION)
    except ValueError as error:
        raise ContextError(
            f"the context cannot be sent: {error} (a single item may have at most 2 GiB)"
        ) from error
