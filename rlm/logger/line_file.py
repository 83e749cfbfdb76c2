"""Files of JSON lines that stay readable when a writer is killed: the event log, and the results of a map.

Each line is one write to a file that is open for appending, so threads and processes can share a file. A process that is killed
leaves whole lines, and at most one half line at the end. The reader skips half lines.
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
"""The beginning of every line. It cannot occur inside a line, where quotes in texts are escaped."""


# ASCII alone: text that is not valid Unicode can be written too.
dumps = json.JSONEncoder(check_circular=False, default=jsonable).encode
"""The JSON text of plain data and dataclasses, in one line."""


class LineFile:
    """Appends lines to a file. Safe in several threads and in forked processes. A pickled copy appends to the same file."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: path of the file, which is made with the first line if it is missing.
        """
        self.path = path
        self._fds: dict[str, int] = {}
        self._broken = False

    def append(self, line: str) -> None:
        """Writes one line. When this returns, the operating system has the line: a crash of this process does not lose it.

        Args:
            line: JSON text of `dumps`, of an object whose first key is `v`, the version of its format.

        Raises:
            OSError: the line could not be written.
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
            # On a full disk, half a line may have been written: the next write begins with a line break.
            self._broken = 0 < written < len(data) or (self._broken and written == 0)

    def _open(self) -> int:
        fd = self._fds.get("fd")
        if fd is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            size = os.fstat(fd).st_size
            self._broken = bool(size) and os.pread(fd, 1, size - 1) != b"\n"
            kept = self._fds.setdefault("fd", fd)  # another thread may have opened the file meanwhile
            if kept is not fd:
                os.close(fd)
                return kept
            # Not at exit: a thread may still write then, and the descriptor would be closed.
            weakref.finalize(self, os.close, fd).atexit = False
        return fd

    def __reduce__(self) -> tuple[type[LineFile], tuple[Path]]:
        return LineFile, (self.path,)


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of a file with the numbers of their lines, counted from 1. Half lines are left out.

    Raises:
        LogError: the file cannot be read, or a line was not written by `LineFile`. The message names the line.
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
    """Returns the object of a line, None for a half or empty line, or a message that says what is wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        # A half line of a killed process. If another process appended to it, the last beginning in it starts a whole line.
        begins = [match.start() for match in _BEGINS.finditer(text)]
        if begins and begins[-1] > 0:
            return _object(text[begins[-1] :])
        if text.startswith(_BEGIN) or _BEGIN.startswith(text):
            return None
        return f"the line is no JSON: {error}"
    except RecursionError:
        return "the line is nested too deep"
    return data if isinstance(data, dict) and "v" in data else "the line is no object with a version 'v'"
