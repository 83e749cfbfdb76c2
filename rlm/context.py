"""The input of a run, encoded once.

The encoded form is UTF-8 for a str (lone surrogates as the three bytes that they would have), the bytes themselves
for bytes, and version 2 of Python's marshal format for containers: it carries plain values exactly, has no
references between values, sorts sets, and is read back at C speed without importing or running anything.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from rlm.errors import ContextError

MARSHAL_VERSION: Final = 2
_PLAIN: Final = frozenset({str, int, float, bool, type(None), bytes, complex})
_CONTAINERS: Final = (list, tuple, dict, set, frozenset)
_MAX_DEPTH: Final = 1000
_CHUNK: Final = 1 << 20
_KINDS: Final = ((str, "str"), (bytes | bytearray, "bytes"), (list, "list"), (tuple, "tuple"), (dict, "dict"))


class Context:
    """An input: `str`, `bytes`, or `list`, `tuple`, `dict` of plain values at any depth. Hashed and encoded once, and
    shared by every REPL that gets it. Immutable: later changes of the value that was given do not show.

    Plain values are str, bytes, int, float, complex, bool and None, and lists, tuples, dicts, sets and frozensets of
    such. Instances of subclasses (Counter, namedtuple, IntEnum, bytearray for bytes, ...) go over as the plain value
    that they are equal to.

    Raises:
        ContextError: the value is of another type, or holds something that cannot be sent; the message says where.
    """

    kind: str
    """"str", "bytes", "list", "tuple" or "dict"."""
    size: int
    """Characters of a str, bytes of bytes, items of the rest."""

    def __init__(self, value: Any) -> None:
        for types, kind in _KINDS:
            if isinstance(value, types):
                self.kind = kind
                break
        else:
            raise ContextError(
                f"a context must be a str, bytes, list, tuple or dict, and this is {_a(value)}{_advice(value)}"
            )
        self._value = value
        try:
            plain: Any = value if _is_plain(value) else _plain(value, "context")
        except RecursionError as error:
            raise ContextError("the context is nested too deep, or contains itself") from error
        self._plain: str | bytes = plain if isinstance(plain, str | bytes) else _marshal(plain)
        self.size = len(plain)
        self._lock = threading.Lock()
        self._sha256: str | None = None
        self._file: int | None = None
        self._encoded_size: int | None = len(self._plain) if isinstance(self._plain, bytes) else None

    @classmethod
    def of(cls, value: Any) -> Context:
        """`value` itself if it is a Context already.

        Raises:
            ContextError: the value is of another type, or holds something that cannot be sent.
        """
        return value if isinstance(value, cls) else cls(value)

    @property
    def value(self) -> Any:
        """The Python value (the object that was given)."""
        return self._value

    @property
    def sha256(self) -> str:
        """Hex digest of the encoded form. Equal for equal values on every machine, except that the order of a dict
        counts, as it can be seen by the code."""
        with self._lock:
            if self._sha256 is None:
                digest = hashlib.sha256()
                for chunk in self.chunks():
                    digest.update(chunk)
                self._sha256 = digest.hexdigest()
            return self._sha256

    @property
    def encoded_size(self) -> int:
        """Bytes of the encoded form."""
        if self._encoded_size is None:
            text = self._plain
            assert isinstance(text, str)
            self._encoded_size = len(text) if text.isascii() else sum(map(len, self.chunks()))
        return self._encoded_size

    def describe(self) -> dict[str, Any]:
        """kind, size and sha256: what logs hold of a context."""
        return {"kind": self.kind, "size": self.size, "sha256": self.sha256}

    def __repr__(self) -> str:
        return f"<Context: {self.kind} of {self.size:,}>"

    def chunks(self) -> Iterator[bytes]:
        """The encoded form in pieces of about 1 MB."""
        data = self._plain
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            yield piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece

    def file(self) -> int:
        """A descriptor of a nameless file in memory with the encoded form; on Linux it is sealed, so that nobody can
        change it. Made at the first call, which takes about a second per GB; belongs to this object, which closes it
        when it is collected.

        Raises:
            OSError: there is no memory or no descriptor left.
        """
        with self._lock:
            if self._file is None:
                self._file = _memory_file(self.chunks())
                weakref.finalize(self, os.close, self._file)
            return self._file

    @property
    def has_file(self) -> bool:
        """Whether `file` returns at once."""
        return self._file is not None


def _memory_file(chunks: Iterator[bytes]) -> int:
    if sys.platform == "linux":
        fd = os.memfd_create("rlm-context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile(prefix="rlm-context-") as unnamed:
            fd = os.dup(unnamed.fileno())
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(fd, rest) :]
        if sys.platform == "linux":
            import fcntl

            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _marshal(plain: Any) -> bytes:
    try:
        return marshal.dumps(plain, MARSHAL_VERSION)
    except ValueError as error:
        raise ContextError(f"the context cannot be sent: {error} (a single item may have 2 GiB)") from error


def _is_plain(value: Any) -> bool:
    """Whether all of it is of exactly the plain types: the quick look, without paths, at what is nearly always so."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            kind = type(container)
            if kind is dict:
                if not _PLAIN.issuperset(map(type, container)):
                    below += [key for key in container if type(key) not in _PLAIN]
                items = container.values()
            elif kind in _CONTAINERS:
                items = container
            elif kind in _PLAIN:
                continue
            else:
                return False
            if not _PLAIN.issuperset(map(type, items)):
                below += [item for item in items if type(item) not in _PLAIN]
        if not below:
            return True
        level = below
    return False


def _plain(value: Any, path: str) -> Any:
    """`value` as exactly the plain types: a copy where it is not."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, dict):
        return _plain_dict(value, path)
    for container in (list, tuple, set, frozenset):
        if isinstance(value, container):
            return _plain_items(value, container, path)
    bases: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
        (int, int.__index__),
        (float, float.__float__),
        (complex, complex.__complex__),
        (str, str.__str__),
        (bytes | bytearray, lambda data: bytes(memoryview(data))),
    )
    for base, convert in bases:
        if isinstance(value, base):
            return convert(value)
    raise ContextError(
        f"{path} is {_a(value)}: a context can hold str, bytes, int, float, complex, bool, None, and lists, tuples, "
        f"dicts and sets of them{_advice(value)}"
    )


def _plain_items(value: Any, container: type, path: str) -> Any:
    return container(_plain(item, f"{path}[{index}]") for index, item in enumerate(value))


def _plain_dict(value: dict[Any, Any], path: str) -> dict[Any, Any]:
    return {
        _plain(key, f"a key of {path}"): _plain(item, f"{path}[{_short(key)}]")
        for key, item in dict.items(value)
    }


def _short(key: Any) -> str:
    text = repr(key) if type(key) in _PLAIN else f"<{type(key).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


def _a(value: Any) -> str:
    name = "None" if value is None else type(value).__qualname__
    if value is None:
        return name
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _advice(value: Any) -> str:
    if value is None:
        return "; pass the input itself, an empty str if there is none"
    if isinstance(value, (set, frozenset, range)) or hasattr(value, "__next__"):
        return "; pass list(...) of it"
    if hasattr(value, "to_dict"):
        return "; pass its to_dict()"
    if hasattr(value, "model_dump"):
        return "; pass its model_dump()"
    if hasattr(value, "tolist"):
        return "; pass its tolist()"
    if callable(value):
        return "; functions and classes cannot be sent"
    return "; pass a str, or plain data made of it"
