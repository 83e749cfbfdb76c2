"""Contexts as they arrive. Their encoded forms are described in `rlm.context` and `rlm.context.tables`."""

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
"""Pieces that are asked for before the first one is here."""


class UnreadableContextError(Exception):
    """A context that the REPL cannot have."""


def read_context(kind: str, fd: int) -> Any:
    """Reads a context from a file.

    Raises:
        UnreadableContextError: it needs something that cannot be imported here.
        MemoryError: there is no room for it.
    """
    size = os.fstat(fd).st_size
    if not size:
        return _load(kind, memoryview(b""))
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as pages, memoryview(pages) as data:
        return _load(kind, data)


def fetch_context(kind: str, number: int, size: int, channel: Channel) -> Any:
    """Asks the host for a context, piece by piece, from the main thread, guarded.

    Args:
        number: its number among those that the host announced.
        size: its bytes.

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

    return pickle.loads(data)  # the host made it


def _read_arrow(data: memoryview) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.py_buffer(bytes(data))).read_all()


_TABLES = {"dataframe": _read_pickle, "series": _read_pickle, "table": _read_arrow}
