"""The worker's stdout and stderr."""

from __future__ import annotations

import io
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

_FLOOD = 500
"""Lines of a cell that are passed on one by one."""


class _Pipe(io.BufferedWriter):
    """Passes each line on at once, so that nothing is lost when a cell is killed; but not each line of a flood, of
    which a killed cell may lose the last few milliseconds."""

    lines = 0
    due = 0.0

    def flush(self) -> None:
        self.lines += 1
        if self.lines > _FLOOD:
            now = time.monotonic()
            if now < self.due:
                return
            self.due = now + 0.01
        super().flush()

    def flush_all(self) -> None:
        self.lines = 0
        super().flush()


class Stream(io.TextIOWrapper):
    """Text to a descriptor, whatever the characters; lone surrogates as escapes."""

    def __init__(self, fd: int) -> None:
        self._pipe = _Pipe(io.FileIO(fd, "w", closefd=False), 1 << 15)
        super().__init__(self._pipe, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def flush_all(self) -> None:
        """Writes everything out: the end of a cell."""
        self.flush()
        self._pipe.flush_all()
