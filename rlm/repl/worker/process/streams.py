"""The worker's stdin, stdout and stderr."""

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
"""Bytes of a stream that are kept in memory before they go down its pipe."""

_STREAM = SIZE + 8
SHARED = 2 * _STREAM
"""Bytes of the memory that a worker shares with its supervisor: for stdout, then for stderr, how many bytes are in
use, whether the supervisor has read from the pipe, and the bytes."""

_USED = struct.Struct("<I")
_READ = 4
_DATA = 8
_FIONREAD = 0x541B
_STARTS = frozenset(("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "os.exec", "pty.spawn"))
"""Audit events after which another program may print."""


class Prints:
    """What Python code writes to a stream. It is kept in memory that the supervisor shares, so that a line costs no
    system call and wakes nobody, and is there still when the worker is killed. It goes down the pipe, in its place
    among what others print, before a program is started and when there is too much of it.

    Args:
        number: 0: stdout; 1: stderr.
    """

    def __init__(self, number: int) -> None:
        self.fd = number + 1
        self._base = number * _STREAM
        self._memory: Any = None
        self._lock = _thread.RLock()
        self._used = 0
        self._settled = 0
        """Bytes in memory that the code has flushed: they stay where they are, but belong to the pipe."""
        self._line = b""

    def connect(self, memory: Any, pipe: int) -> None:
        """
        Args:
            memory: the shared memory.
            pipe: a descriptor of the pipe that the stream's own one stands for, out of the code's way.
        """
        self._memory = memory
        self._pipe = pipe
        self._home = os.fstat(pipe)
        self._used = self._settled = 0
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
        """In a forked child: whole lines, as others print too."""
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
                    if self._settled:
                        write_all(self._pipe, data[: self._settled])
                    write_all(fd, data[self._settled :])
                finally:
                    self._clear()

    def _content(self) -> bytes:
        start = self._base + _DATA
        data: bytes = self._memory[start : start + self._used]
        return data

    def _clear(self) -> None:
        self._used = self._settled = 0
        _USED.pack_into(self._memory, self._base, 0)

    def flush(self) -> None:
        """For the code. It matters only if something else is, or will be, behind the descriptor."""
        if self._memory is None or self._is_elsewhere():
            self.spill()
        else:
            self._settled = self._used

    def take(self) -> str | None:
        """At the end of a cell: what was printed. None if some of it went down the pipe, and all of it is there now."""
        with self._lock:
            if self._used and self._is_elsewhere():
                try:
                    self.spill()
                except OSError:
                    pass  # a full disk, say
            # In this order: what the supervisor takes from the pipe in between, it has said before.
            if self._is_waiting() or self._memory[self._base + _READ]:
                self._spill(self._pipe)
                return None
            if not self._used:
                return ""
            data = self._content()
            self._clear()
        return data.decode("utf-8", "backslashreplace")

    def leave(self) -> None:
        """In a forked child: the memory is the parent's."""
        self._lock = _thread.RLock()
        self._memory = None
        self._line = b""

    def _is_elsewhere(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self.fd), self._home)
        except OSError:
            return False

    def _is_waiting(self) -> bool:
        """Whether there is something in the pipe."""
        if not LINUX:
            return True  # it can't be told: the supervisor will say
        return fcntl.ioctl(self._pipe, _FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"


def mark_read(memory: Any, number: int, read: bool) -> None:
    """For the supervisor: notes, before it reads from a pipe, that it does, or that all it read has been taken."""
    memory[number * _STREAM + _READ] = read


def rest(memory: Any, number: int) -> bytes:
    """For the supervisor: what a dead worker left in memory."""
    base = number * _STREAM
    used = min(_USED.unpack_from(memory, base)[0], SIZE)
    data: bytes = memory[base + _DATA : base + _DATA + used]
    return data


class _Writer(io.BufferedIOBase):
    """Makes a file of `Prints`."""

    def __init__(self, prints: Prints) -> None:
        self._prints = prints
        self.name = ("<stdout>", "<stderr>")[prints.fd - 1]

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._prints.fd

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        if type(data) is not bytes:
            data = memoryview(data).tobytes()
        self._prints.write(data)
        return len(data)

    def flush(self) -> None:
        self._prints.flush()


class _Stream(io.TextIOWrapper):
    """Text, whatever the characters; lone surrogates as escapes."""

    def __init__(self, prints: Prints) -> None:
        super().__init__(_Writer(prints), encoding="utf-8", errors="backslashreplace", write_through=True)


class Streams:
    """The three streams of a worker. Made once, before it is forked, and connected after."""

    def __init__(self) -> None:
        self._prints = Prints(0), Prints(1)
        self._stdin: io.TextIOWrapper | None = None
        self._out: list[_Stream | None] = [None, None]

    def connect(self, memory: Any, stdout: int, stderr: int) -> None:
        """
        Args:
            memory: the memory that the worker shares with its supervisor.
            stdout, stderr: descriptors of the pipes, out of the code's way.
        """
        for prints, pipe in zip(self._prints, (stdout, stderr)):  # noqa: B905 (Python 3.9)
            prints.connect(memory, pipe)
        self.renew()

    def renew(self) -> None:
        """Makes the streams of `sys` ours again. Objects that are whole are kept."""
        if self._stdin is None or self._stdin.closed:
            self._stdin = open(0, encoding="utf-8", closefd=False)
        for number, prints in enumerate(self._prints):
            stream = self._out[number]
            if stream is None or stream.closed:
                self._out[number] = _Stream(prints)
        stdout, stderr = self._out
        vars(sys).update(stdin=self._stdin, stdout=stdout, stderr=stderr)
        vars(sys).update(__stdin__=self._stdin, __stdout__=stdout, __stderr__=stderr)

    def watch(self) -> None:
        """From now on what was printed goes down the pipe before another program is started."""
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: Any) -> None:
        if event in _STARTS:
            self.spill()

    def spill(self) -> None:
        """Writes everything to the descriptors."""
        self._flush_others()
        for prints in self._prints:
            try:
                prints.spill()
            except OSError:
                pass  # the code closed it, or what is behind it

    def take(self) -> list[str | None]:
        """At the end of a cell: what was printed on stdout and stderr, each as `Prints.take` has it."""
        self._flush_others()
        return [prints.take() for prints in self._prints]

    def leave(self) -> None:
        """In a forked child."""
        for prints in self._prints:
            prints.leave()

    def _flush_others(self) -> None:
        for number, stream in enumerate((sys.stdout, sys.stderr)):
            if stream is not self._out[number]:
                try:
                    stream.flush()
                except Exception:
                    pass  # closed, or the code's own idea of a stream


STREAMS = Streams()
"""Those of this process."""
