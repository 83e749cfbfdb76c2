"""Decodes contexts as they arrive. `rlm.context.context` and `rlm.context.tables` describe the encoded forms."""

from __future__ import annotations

import marshal
import mmap
import os
from collections import deque

from ..protocol.kinds import FromWorker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Channel

_AHEAD = 4
"""Pieces that are requested ahead, so that the worker does not wait for every piece."""


class UnreadableContextError(Exception):
    """A context cannot be decoded in this process."""


def read_context(kind: str, fd: int) -> Any:
    """Reads a context from a file.

    Args:
        kind: the kind of its encoded form.
        fd: a descriptor of the file.

    Raises:
        UnreadableContextError: the context is a table, and its library cannot be imported here or cannot read it.
        MemoryError: the context does not fit in memory.
    """
    size = os.fstat(fd).st_size
    if not size:
        return _load(kind, memoryview(b""))
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as pages, memoryview(pages) as data:
        return _load(kind, data)


def fetch_context(kind: str, number: int, size: int, channel: Channel) -> Any:
    """Requests a context from the host, piece by piece. From the main thread, guarded.

    Args:
        kind: the kind of its encoded form.
        number: its number among the contexts that the host announced.
        size: bytes of its encoded form.

    Raises:
        UnreadableContextError, MemoryError: see `read_context`.
    """
    data = bytearray(size)
    at = 0
    asked = deque(channel.request(FromWorker.PIECE, {"context": number}) for _ in range(_AHEAD))
    while asked:
        piece: bytes = channel.reply(asked.popleft())
        if piece:
            data[at : at + len(piece)] = piece
            at += len(piece)
            asked.append(channel.request(FromWorker.PIECE, {"context": number}))
    with memoryview(data) as view:
        return _load(kind, view)


def _load(kind: str, data: memoryview) -> Any:
    if kind == "str":
        return str(data, "utf-8", "surrogatepass")
    if kind == "bytes":
        return bytes(data)
    if kind in _TABLES:
        try:
            return _TABLES[kind](data)
        except ImportError as error:
            library = "pyarrow" if kind == "table" else "pandas"
            raise UnreadableContextError(
                f"a context is a table of {library}, and the REPL cannot import what it needs: {error}"
            ) from error
        except MemoryError:
            raise
        except Exception as error:
            raise UnreadableContextError(
                f"a context that is a table cannot be read in the REPL: {error}"
            ) from error
    return marshal.loads(data)


def _read_pickle(data: memoryview) -> Any:
    import pickle

    return pickle.loads(data)  # safe: the host made it


def _read_arrow(data: memoryview) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.py_buffer(bytes(data))).read_all()


_TABLES = {"dataframe": _read_pickle, "series": _read_pickle, "table": _read_arrow}
