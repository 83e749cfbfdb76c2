"""Files of one JSON object a line, which outlive a crash of who writes them.

A line is one write to a file opened for appending: threads and processes may share a file, and a process that is killed leaves
whole lines behind, but for half a line at most. The reader passes over such halves.
"""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlm._redaction import jsonable
from rlm.errors import LogError

_BEGIN = '{"v": '
_BEGINS = re.compile(r'\{"v": \d+, "')
"""How each line begins. Within the texts of a line it cannot stand: there its quotes are escaped."""


# To ASCII, so that text that is not valid Unicode can be written too.
dumps = json.JSONEncoder(check_circular=False, default=jsonable).encode
"""The JSON text of plain data and dataclasses, in one line."""


class LineFile:
    """Appends lines to a file. Safe in several threads, in processes that were forked, and after a trip through pickle."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: is made, if it is missing, at the first line.
        """
        self.path = path
        self._fds: dict[str, int] = {}
        self._broken = False

    def append(self, line: str) -> None:
        """Writes one line; it is with the operating system when this returns.

        Args:
            line: what `dumps` made of an object whose first key is `v`, the version of its format.

        Raises:
            OSError: it could not be written.
        """
        data = line.encode("ascii") + b"\n"
        fd = self._open()
        if self._broken:
            data = b"\n" + data
        written = 0
        try:
            while written < len(data):
                written += os.write(fd, data[written:] if written else data)
        finally:
            # On a full disk half a line may have been written: the next one must not go on in it.
            self._broken = 0 < written < len(data) or (self._broken and written == 0)

    def _open(self) -> int:
        fd = self._fds.get("fd")
        if fd is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            size = os.fstat(fd).st_size
            self._broken = bool(size) and os.pread(fd, 1, size - 1) != b"\n"
            kept = self._fds.setdefault("fd", fd)  # another thread may have been faster
            if kept is not fd:
                os.close(fd)
                return kept
            # Not at the exit: whoever writes then still has the number.
            weakref.finalize(self, os.close, fd).atexit = False
        return fd

    def __reduce__(self) -> tuple[type[LineFile], tuple[Path]]:
        return LineFile, (self.path,)


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of such a file, with the numbers of their lines, counted from 1. Lines that break off are left out.

    Raises:
        LogError: the file cannot be read, or a line is not of the kind that `LineFile` writes.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                data = _object(line.strip())
                if isinstance(data, dict):
                    yield number, data
                elif data is not None:
                    raise LogError(f"{os.fspath(path)}, line {number}: {data}")
    except OSError as error:
        raise LogError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error


def _object(text: str) -> dict[str, Any] | str | None:
    """The object of a line, None for half a line or an empty one, or what is wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        # Half a line of a process that was killed; another process may have gone on in the same line.
        begins = [match.start() for match in _BEGINS.finditer(text)]
        if begins and begins[-1] > 0:
            return _object(text[begins[-1] :])
        if text.startswith(_BEGIN) or _BEGIN.startswith(text):
            return None
        return f"this is no JSON: {error}"
    except RecursionError:
        return "this is nested too deep"
    return data if isinstance(data, dict) and "v" in data else "this is no line of a log: it has no 'v'"
