"""The worker's stdin, stdout and stderr."""

# ruff: noqa: SIM105, SIM115 (no contextlib)

from __future__ import annotations

import io
import sys
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


class _Stream(io.TextIOWrapper):
    """Text to a descriptor, whatever the characters; lone surrogates as escapes."""

    def __init__(self, fd: int) -> None:
        self._pipe = _Pipe(io.FileIO(fd, "w", closefd=False), 1 << 15)
        super().__init__(self._pipe, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def flush_all(self) -> None:
        self._pipe.lines = 0
        self.flush()


_stdin: io.TextIOWrapper | None = None
_stdout: _Stream | None = None
_stderr: _Stream | None = None


def renew() -> None:
    """Makes the streams of `sys` those of descriptors 0, 1 and 2 again. Objects that are whole are kept, also over a
    fork: what stands behind the numbers may change."""
    global _stdin, _stdout, _stderr
    if _stdin is None or _stdin.closed:
        _stdin = open(0, encoding="utf-8", closefd=False)
    if _stdout is None or _stdout.closed:
        _stdout = _Stream(1)
    if _stderr is None or _stderr.closed:
        _stderr = _Stream(2)
    sys.stdin, sys.stdout, sys.stderr = _stdin, _stdout, _stderr
    vars(sys).update(__stdin__=_stdin, __stdout__=_stdout, __stderr__=_stderr)


def flush() -> None:
    """Writes everything out: the end of a cell."""
    for other in (sys.stdout, sys.stderr):
        if other is not _stdout and other is not _stderr:
            try:
                other.flush()
            except Exception:
                pass  # closed, or the code's own idea of a stream
    for stream in (_stdout, _stderr):
        try:
            if stream is not None:
                stream.flush_all()
        except Exception:
            pass  # the code closed it, or what is behind it
