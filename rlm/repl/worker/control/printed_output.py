"""What the processes of one REPL print, as the supervisor collects it."""

from __future__ import annotations

import fcntl
import mmap
import os

from ..process import streams
from ..process.output import Output
from ..process.processes import LINUX
from .poll_loop import READ, PollLoop, read

_MOST_READ = 1 << 16
"""Bytes to read from a pipe in one turn of the loop."""
_MOST_DRAINED = 1 << 17
"""Bytes to read from a pipe when a cell has ended. A pipe holds 64 KiB. Without a bound, a child that never stops printing
would keep the supervisor busy."""


class PrintedOutput:
    """Collects what is printed on stdout and stderr.

    Programs and C code print to a pipe for each stream. The worker puts what Python code prints in shared memory
    (`process.streams`).
    """

    def __init__(self, loop: PollLoop) -> None:
        self._loop = loop
        pipes = os.pipe(), os.pipe()
        self._pipes = [pipe[0] for pipe in pipes]
        file = unnamed_file(streams.SHARED)
        self._memory = mmap.mmap(file, streams.SHARED)
        self._outputs: list[Output] = []
        self.fds = [pipes[0][1], pipes[1][1], file]
        """The descriptors for the worker: stdout, stderr, and the shared memory. `on_forked` closes them here."""

    def on_forked(self) -> None:
        """Called when the worker has its descriptors."""
        for fd in self.fds:
            os.close(fd)
        for number, pipe in enumerate(self._pipes):
            os.set_blocking(pipe, False)
            self._loop.watch(pipe, READ, lambda _, number=number: self._collect(number, _MOST_READ))  # type: ignore[misc]

    def keep(self, limit: int) -> None:
        """Keeps what is printed from now on.

        Args:
            limit: characters to keep of each stream, until they are taken.
        """
        self._outputs = [Output(limit), Output(limit)]

    def take(self, lines: list[str]) -> list[str]:
        """Takes what a cell that has ended printed on stdout and stderr.

        Args:
            lines: for each stream, a line to add to it.
        """
        self._drain()
        for number, output in enumerate(self._outputs):
            streams.mark_read(self._memory, number, False)
            output.add_line(lines[number])
        return [output.take() for output in self._outputs]

    def take_last(self) -> list[str]:
        """Takes what was printed since the last `take`, when the worker has ended."""
        self._drain()
        for number, output in enumerate(self._outputs):
            output.feed(streams.rest(self._memory, number))
        return [output.take() for output in self._outputs]

    def close(self) -> None:
        for pipe in self._pipes:
            self._loop.unwatch(pipe)
            os.close(pipe)
        self._pipes = []
        self._memory.close()

    def _collect(self, number: int, most: int) -> None:
        """Reads what was printed to a pipe, about `most` bytes at most."""
        streams.mark_read(self._memory, number, True)
        while most > 0:
            data = read(self._pipes[number])
            if data == b"":
                self._loop.unwatch(self._pipes[number])
            if not data:
                return
            if self._outputs:
                self._outputs[number].feed(data)
            most -= len(data)

    def _drain(self) -> None:
        """Reads all that was printed to the pipes before now."""
        for number in (0, 1):
            self._collect(number, _MOST_DRAINED)


def unnamed_file(size: int | None = None) -> int:
    """A descriptor of a file in memory, or of one on disk without a name.

    Args:
        size: bytes that the file has. On Linux its size then cannot change: if the code could shrink it, an access to
            mapped memory behind its end would kill the supervisor.
    """
    if LINUX:
        fd = os.memfd_create("rlm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if size is not None:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return fd
    import tempfile

    with tempfile.TemporaryFile() as file:
        fd = os.dup(file.fileno())
    if size is not None:
        os.ftruncate(fd, size)
    return fd
