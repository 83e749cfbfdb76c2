"""The worker's stdin, stdout and stderr.

What Python code prints is kept in memory that the supervisor shares (`PrintBuffer`). What C code and other programs print
goes down a pipe to the supervisor. Both stay in order: the memory is written to the pipe before another program can print.
"""

# ruff: noqa: SIM105, SIM115 (no contextlib)

from __future__ import annotations

import _thread
import fcntl
import io
import os
import struct
import sys

from ..protocol.frames import write_all
from .processes import LINUX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIZE = 1 << 16
"""Bytes of a stream that are kept in memory. If there are more, all of them go down the stream's pipe."""

_STREAM = SIZE + 8
SHARED = 2 * _STREAM
"""Bytes of the memory that a worker shares with its supervisor. For stdout, then for stderr, it holds the number of bytes in
use, whether the supervisor has read from the pipe, and the bytes."""

_USED = struct.Struct("<I")
_READ, _DATA = 4, 8
"""Offsets in the part of a stream."""
_FIONREAD = 0x541B
_PROGRAM_STARTS = frozenset(
    ("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "os.exec", "pty.spawn")
)
"""Audit events of Python that precede the start of another program."""


class PrintBuffer:
    """What Python code has written to a stream, in memory that the supervisor shares. A line costs no system call, does not
    wake the supervisor, and outlives a worker that is killed. The buffer is written to the pipe before a program is started,
    and when it is full.

    Args:
        number: 0: stdout; 1: stderr.
    """

    def __init__(self, number: int) -> None:
        self.fd = number + 1
        self._base = number * _STREAM
        self._memory: Any = None
        self._lock = _thread.RLock()
        self._used = 0
        self._flushed = 0
        """Bytes in memory that the code has flushed. They go to the pipe even if the code redirects the descriptor later."""
        self._line = b""

    def connect(self, memory: Any, pipe: int) -> None:
        """Begins to use the shared memory.

        Args:
            memory: the shared memory.
            pipe: a high descriptor of the stream's pipe. The stream's own descriptor is 1 or 2, which the code may redirect.
        """
        self._memory = memory
        self._pipe = pipe
        self._pipe_stat = os.fstat(pipe)
        self._used = self._flushed = 0
        self._line = b""

    def write(self, data: bytes) -> None:
        with self._lock:
            if self._memory is None:
                self._pass_on(data)
                return
            if self._used + len(data) > SIZE:
                self.spill()
                if len(data) > SIZE:
                    write_all(self.fd, data)
                    return
            start = self._base + _DATA + self._used
            self._used += len(data)
            self._memory[start : start + len(data)] = data
            _USED.pack_into(self._memory, self._base, self._used)

    def _pass_on(self, data: bytes) -> None:
        """Called in a child that the code forked. Writes whole lines, because other processes print to the pipe too."""
        self._line += data
        if b"\n" in data or len(self._line) > SIZE:
            self.spill()

    def spill(self) -> None:
        """Writes what is in memory to the descriptor."""
        self._spill(self.fd)

    def _spill(self, fd: int) -> None:
        with self._lock:
            if self._memory is None:
                line, self._line = self._line, b""
                write_all(fd, line)
            elif self._used:
                data = self._content()
                try:
                    if self._flushed:
                        write_all(self._pipe, data[: self._flushed])
                    write_all(fd, data[self._flushed :])
                finally:
                    self._clear()

    def _content(self) -> bytes:
        start = self._base + _DATA
        data: bytes = self._memory[start : start + self._used]
        return data

    def _clear(self) -> None:
        self._used = self._flushed = 0
        _USED.pack_into(self._memory, self._base, 0)

    def flush(self) -> None:
        """Flushes the stream for the code: writes if the code has redirected the descriptor, or in a forked child."""
        if self._memory is None or self._is_redirected():
            self.spill()
        else:
            self._flushed = self._used

    def take(self) -> str | None:
        """Takes what was printed, at the end of a cell. None: a part had gone down the pipe, so the rest went there too."""
        with self._lock:
            if self._used and self._is_redirected():
                try:
                    self.spill()
                except OSError:
                    pass  # for example, the disk is full
            # In this order: before the supervisor empties the pipe, it notes that it reads (`mark_read`).
            if self._pipe_has_data() or self._memory[self._base + _READ]:
                self._spill(self._pipe)
                return None
            if not self._used:
                return ""
            data = self._content()
            self._clear()
        return data.decode("utf-8", "backslashreplace")

    def leave(self) -> None:
        """Called in a child that the code forked. Stops using the memory, which belongs to the parent."""
        self._lock = _thread.RLock()
        self._memory = None
        self._line = b""

    def _is_redirected(self) -> bool:
        """Whether the code has redirected the descriptor."""
        try:
            return not os.path.samestat(os.fstat(self.fd), self._pipe_stat)
        except OSError:
            return False

    def _pipe_has_data(self) -> bool:
        """Whether the pipe may hold something that the supervisor has not read."""
        if not LINUX:
            return True  # unknown here: the supervisor finds out when it reads
        return fcntl.ioctl(self._pipe, _FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"


def mark_read(memory: Any, number: int, read: bool) -> None:
    """Called in the supervisor. Notes that it is about to read from a pipe, or (False) that the host has all that it read."""
    memory[number * _STREAM + _READ] = read


def rest(memory: Any, number: int) -> bytes:
    """Called in the supervisor. Returns what a worker that has ended left in the memory."""
    base = number * _STREAM
    used = min(_USED.unpack_from(memory, base)[0], SIZE)
    data: bytes = memory[base + _DATA : base + _DATA + used]
    return data


class _Writer(io.BufferedIOBase):
    """A binary file that writes to a `PrintBuffer`."""

    def __init__(self, buffer: PrintBuffer) -> None:
        self._buffer = buffer
        self.name = ("<stdout>", "<stderr>")[buffer.fd - 1]

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._buffer.fd

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        if type(data) is not bytes:
            data = memoryview(data).tobytes()
        self._buffer.write(data)
        return len(data)

    def flush(self) -> None:
        self._buffer.flush()


class _TextOutput(io.TextIOWrapper):
    """`sys.stdout` or `sys.stderr` of a worker. It takes every str: lone surrogates become escapes."""

    def __init__(self, buffer: PrintBuffer) -> None:
        super().__init__(_Writer(buffer), encoding="utf-8", errors="backslashreplace", write_through=True)


class Streams:
    """The three streams of a worker. Made once, in the fork server, and connected in each worker."""

    def __init__(self) -> None:
        self._buffers = PrintBuffer(0), PrintBuffer(1)
        self._stdin: io.TextIOWrapper | None = None
        self._out: list[_TextOutput | None] = [None, None]

    def connect(self, memory: Any, stdout: int, stderr: int) -> None:
        """Connects the streams of a worker.

        Args:
            memory: the memory that the worker shares with its supervisor.
            stdout, stderr: high descriptors of the pipes.
        """
        for buffer, pipe in zip(self._buffers, (stdout, stderr)):  # noqa: B905 (Python 3.9)
            buffer.connect(memory, pipe)
        self.renew()

    def renew(self) -> None:
        """Puts these streams back into `sys`. A stream that the code closed is made anew."""
        if self._stdin is None or self._stdin.closed:
            self._stdin = open(0, encoding="utf-8", closefd=False)
        for number, buffer in enumerate(self._buffers):
            stream = self._out[number]
            if stream is None or stream.closed:
                self._out[number] = _TextOutput(buffer)
        stdout, stderr = self._out
        vars(sys).update(stdin=self._stdin, stdout=stdout, stderr=stderr)
        vars(sys).update(__stdin__=self._stdin, __stdout__=stdout, __stderr__=stderr)

    def watch(self) -> None:
        """From now on writes what is in memory to the pipes before another program is started. It cannot be undone."""
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: Any) -> None:
        if event in _PROGRAM_STARTS:
            self.spill()

    def spill(self) -> None:
        """Writes everything that is in memory to the descriptors."""
        self._flush_others()
        for buffer in self._buffers:
            try:
                buffer.spill()
            except OSError:
                pass  # the code closed the descriptor, or the other end of it

    def take(self) -> list[str | None]:
        """Takes what was printed on stdout and stderr, at the end of a cell. See `PrintBuffer.take`."""
        self._flush_others()
        return [buffer.take() for buffer in self._buffers]

    def leave(self) -> None:
        """Called in a child that the code forked. Stops using the memory."""
        for buffer in self._buffers:
            buffer.leave()

    def _flush_others(self) -> None:
        for number, stream in enumerate((sys.stdout, sys.stderr)):
            if stream is not self._out[number]:
                try:
                    stream.flush()
                except Exception:
                    pass  # the stream is closed, or is an object of the code that only looks like a stream


STREAMS = Streams()
"""The streams of this process."""
