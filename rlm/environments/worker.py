"""The far side of a REPL: one file, standard library only, for any CPython from 3.9 on, on Linux and macOS.

Two processes run this code. The **supervisor** owns the byte stream to the host. It forks the **worker**, in which the
code of the cells runs, hands frames on, collects what the worker and its children print, stops cells that take too
long, ends the whole process tree, and forks a fresh worker when one is gone. Both are forked from a warm parent
(`warm_parent.py`) or, with `python worker.py` in a container, started over stdin and stdout.

A frame is one byte that says what it is, the length of the payload as four bytes, big-endian, and the payload: JSON in
UTF-8, in which lone surrogates are encoded like other characters, or raw bytes.

    host to supervisor    O  open: contexts, history, limits, ...      B  raw bytes of the contexts
                          X  run a cell   I  interrupt it   R  replies to a query   Z  end everything
    supervisor to host    H  hello: its process id   U  up: the worker is ready   Q  a query   N  the cell is being interrupted
                          E  end of the cell   F  the REPL cannot go on
    worker to supervisor  U, Q, F as above   D  the cell is done
    supervisor to worker  X, R   A  the queries of the interrupted cell are void

The host trusts nothing that comes from here, and the supervisor nothing that comes from the worker.
"""

# Few imports, as each costs memory in every REPL: no pathlib, no contextlib.
# ruff: noqa: PTH103, PTH106, PTH108, PTH114, PTH118, PTH123, PTH208, SIM105, SIM115

from __future__ import annotations

import _thread
import builtins
import codecs
import errno
import fcntl
import io
import itertools
import json
import linecache
import marshal
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import traceback
import types
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

MAX_FRAME = 256 << 20
"""Bytes of the largest frame: what one call of `llm_query_batched` may carry."""

_HEADER = struct.Struct(">cI")
_READ = 1 << 16
_LINUX = sys.platform == "linux"


# --- the wire ---------------------------------------------------------------------------------------------------------


class ProtocolError(Exception):
    """The other side sent something that is no frame."""


def encode(message: Any) -> bytes:
    """JSON that carries every str, lone surrogates too."""
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def decode(payload: bytes) -> Any:
    return json.loads(payload.decode("utf-8", "surrogatepass"))


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, len(payload)) + payload


class Frames:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[bytes, bytes] | None:
        """Kind and payload of the next frame; None if it is not there in full.

        Raises:
            ProtocolError: it is longer than `MAX_FRAME`.
        """
        buffer = self._buffer
        if len(buffer) < _HEADER.size:
            return None
        kind, size = _HEADER.unpack_from(buffer)
        if size > MAX_FRAME:
            raise ProtocolError(f"a frame of {size} bytes")
        end = _HEADER.size + size
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[_HEADER.size : end])
        del buffer[:end]
        return kind, payload


def write_all(fd: int, data: bytes) -> None:
    """Writes to a blocking descriptor."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


# --- system calls that Python does not have ---------------------------------------------------------------------------

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

try:
    import ctypes

    _libc: Any = ctypes.CDLL(None, use_errno=True)
except (ImportError, OSError):  # a Python built without ctypes: the REPL works, orphans of orphans may escape
    _libc = None


def prctl(option: int, value: int) -> None:
    if _LINUX and _libc is not None:
        _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def become_subreaper() -> None:
    """From now on the orphans among our descendants become our children, so that we can find and end them."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, signum: int) -> None:
    """Has the kernel send us a signal when our parent dies. The parent must be single-threaded: the kernel watches
    the thread that forked us."""
    prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(0)


def children() -> list[int] | None:
    """Ids of our direct children, zombies included; None where the system does not tell."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        pass
    found = []
    try:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat") as stat:
                        if int(stat.read().rpartition(")")[2].split()[1]) == me:
                            found.append(int(name))
                except OSError:
                    continue  # it ended while we looked
    except OSError:
        return None
    return found


def kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        pass  # it ended, or runs as somebody else


def end_children(
    spare: Iterable[int] = (), known: Iterable[int] = (), patience: float = 5.0
) -> dict[int, int]:
    """Kills and reaps our children, and theirs as they become ours, except `spare`. Where the system does not list
    children, those in `known` and their process groups.

    Returns:
        Wait status by process id of those that ended, spared ones included.
    """
    spared = set(spare)
    ended: dict[int, int] = {}
    deadline = time.monotonic() + patience
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if not pid:
                break
            ended[pid] = status
        doomed = children()
        if doomed is None:
            doomed = [pid for pid in known if pid not in ended]
            for pid in doomed:
                kill(-pid, signal.SIGKILL)
        doomed = [pid for pid in doomed if pid not in spared]
        if not doomed or time.monotonic() > deadline:
            return ended
        for pid in doomed:
            kill(pid, signal.SIGKILL)
        time.sleep(0.0002)


def close_all_but(fds: Iterable[int]) -> None:
    """Closes every descriptor above 2 that is not named."""
    start = 3
    for fd in sorted(set(fds)):
        if fd >= start:
            os.closerange(start, fd)
            start = fd + 1
    os.closerange(start, max(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))


def remove_tree(path: str) -> None:
    """Removes a directory and what is in it, as far as we may."""
    try:
        os.rmdir(path)
        return
    except OSError:
        pass
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            try:
                os.unlink(os.path.join(folder, name))
            except OSError:
                pass
        for name in folders:
            inner = os.path.join(folder, name)
            try:
                os.unlink(inner) if os.path.islink(inner) else os.rmdir(inner)
            except OSError:
                pass
    try:
        os.rmdir(path)
    except OSError:
        pass


# --- the supervisor ---------------------------------------------------------------------------------------------------


class Output:
    """What came out of a descriptor since the last `take`: its head and its tail, in constant memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head_limit = limit // 2
        self._tail_limit = limit - limit // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._reset()

    def _reset(self) -> None:
        self._head: list[str] = []
        self._head_size = 0
        self._tail: list[str] = []
        self._tail_size = 0
        self._total = 0
        self._last = "\n"

    def feed(self, data: bytes) -> None:
        self.add(self._decoder.decode(data))

    def add(self, text: str) -> None:
        if not text:
            return
        self._total += len(text)
        self._last = text[-1]
        if self._head_size < self._head_limit:
            part = text[: self._head_limit - self._head_size]
            self._head.append(part)
            self._head_size += len(part)
            text = text[len(part) :]
        if len(text) > self._tail_limit:
            text = text[-self._tail_limit :]
        self._tail.append(text)
        self._tail_size += len(text)
        if self._tail_size > 2 * self._tail_limit:
            self._cut()

    def _cut(self) -> None:
        text = "".join(self._tail)[-self._tail_limit :] if self._tail_limit else ""
        self._tail, self._tail_size = [text], len(text)

    def add_line(self, text: str) -> None:
        """Adds text that stands on lines of its own."""
        if text:
            self.add(text if self._last == "\n" else "\n" + text)

    def take(self) -> str:
        self.add(self._decoder.decode(b"", True))
        self._cut()
        left_out = self._total - self._head_size - self._tail_size
        middle = f"\n... [{left_out:,} characters left out] ...\n" if left_out else ""
        text = "".join(self._head) + middle + "".join(self._tail)
        self._reset()
        return text


class Cell:
    """The cell that runs."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.id: int = message["id"]
        self.timeout: float | None = message["timeout"]
        self.grace: float = message["grace"]
        self.started = time.monotonic()
        self.strikes = 0
        """Interrupts so far."""
        self.reason = ""
        """Why it was interrupted, if that is not the time limit."""
        self.due: float | None = None if self.timeout is None else self.started + self.timeout
        """When to go one step further: interrupt, interrupt again, kill."""


class Supervisor:
    """Runs one REPL until its host goes away or ends it.

    Args:
        source, sink: descriptors of the stream from and to the host; may be one.
        contexts: descriptors of files with the encoded contexts; None if they come as raw bytes.
        folder: the worker's own directory, which is made and removed.
    """

    def __init__(self, source: int, sink: int, contexts: list[int] | None, folder: str) -> None:
        self._source, self._sink = source, sink
        self._context_fds = contexts
        self._folder = folder
        self._frames = Frames()
        self._out = bytearray()
        self._open: bytes | None = None
        self._metas: list[dict[str, Any]] = []
        self._arriving: list[tuple[int, int]] = []
        """Contexts that are still to come: descriptor, bytes."""
        self._answer: Any = ["", False]
        self._notice = ""
        self._cell: Cell | None = None
        self._pid = 0
        self._up = False
        self._status: int | None = None
        """How the worker ended."""
        self._link = -1
        self._link_frames = Frames()
        self._link_out = bytearray()
        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._ended = False

    # the loop

    def run(self) -> None:
        os.makedirs(self._folder, 0o700, exist_ok=True)
        self._wake_read, wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._wake_write = wake_write
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        os.set_blocking(self._source, False)
        os.set_blocking(self._sink, False)
        self._stdout, self._stdout_in = os.pipe()
        self._stderr, self._stderr_in = os.pipe()
        os.set_blocking(self._stdout, False)
        os.set_blocking(self._stderr, False)
        self._watch(self._wake_read.fileno(), select.POLLIN)
        self._watch(self._source, select.POLLIN)
        self._send(b"H", {"pid": os.getpid()})
        try:
            while not self._ended:
                for fd, events in self._poll.poll(self._patience()):
                    self._handle(fd, events)
                self._tick()
        finally:
            self._end_worker()
            remove_tree(self._folder)
            self._flush_host()

    def _watch(self, fd: int, mask: int) -> None:
        if self._masks.get(fd, 0) == mask:
            return
        if mask:
            self._poll.register(fd, mask)
            self._masks[fd] = mask
        elif self._masks.pop(fd, 0):
            self._poll.unregister(fd)

    def _handle(self, fd: int, events: int) -> None:
        if fd == self._source and events & ~select.POLLOUT:
            self._read_host()
        elif fd == self._link and events & ~select.POLLOUT:
            self._read_link()
        elif fd == self._stdout or fd == self._stderr:
            self._collect(fd, _READ)
        elif fd == self._wake_read.fileno():
            self._wake()
        if events & select.POLLOUT:
            if fd == self._sink:
                self._flush_host()
            if fd == self._link:
                self._flush_link()

    def _patience(self) -> float | None:
        if self._cell is None or self._cell.due is None:
            return None
        return float(max(0.0, (self._cell.due - time.monotonic()) * 1000 + 1))

    def _wake(self) -> None:
        signals = b""
        try:
            signals = self._wake_read.recv(4096)
        except BlockingIOError:
            pass
        if signal.SIGTERM in signals or signal.SIGHUP in signals:
            self._ended = True
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid == self._pid:
                self._status = status
        if self._status is not None and not self._ended:
            self._read_link()
            if self._status is not None:
                self._replace(self._manner())

    # the host

    def _send(self, kind: bytes, message: Any) -> None:
        self._out += pack(kind, encode(message))
        self._flush_host()

    def _flush_host(self) -> None:
        self._ended |= not self._flush(self._sink, self._out)

    def _flush(self, fd: int, buffer: bytearray) -> bool:
        """Writes what goes out at once and watches for the rest. Returns whether the other side is there."""
        try:
            while buffer:
                with memoryview(buffer) as view:
                    count = os.write(fd, view[: 1 << 20])
                del buffer[:count]
        except BlockingIOError:
            pass
        except OSError:
            buffer.clear()
            return False
        reads = fd in (self._source, self._link)
        self._watch(fd, (select.POLLIN if reads else 0) | (select.POLLOUT if buffer else 0))
        return True

    def _read_host(self) -> None:
        data = _read(self._source)
        if data is None:
            return
        if not data:
            self._ended = True
            return
        self._frames.feed(data)
        while not self._ended:
            frame = self._frames.next()
            if frame is None:
                return
            self._from_host(*frame)

    def _from_host(self, kind: bytes, payload: bytes) -> None:
        if kind == b"X":
            self._cell = Cell(decode(payload))
            self._to_worker(kind, payload)
        elif kind == b"R":
            self._to_worker(kind, payload)
        elif kind == b"I":
            if self._cell is not None and not self._cell.strikes:
                self._cell.reason = str(decode(payload)["reason"])
                self._interrupt(self._cell)
        elif kind == b"Z":
            self._ended = True
        elif kind == b"O":
            self._begin(payload)
        elif kind == b"B":
            self._receive(payload)
        else:
            raise ProtocolError(f"the host sent a frame {kind!r}")

    def _begin(self, payload: bytes) -> None:
        message = decode(payload)
        self._open = payload
        self._metas = message["contexts"]
        self._answer = message["answer"]
        self._output = {
            self._stdout: Output(message["max_output"]),
            self._stderr: Output(message["max_output"]),
        }
        self._watch(self._stdout, select.POLLIN)
        self._watch(self._stderr, select.POLLIN)
        if self._context_fds is None:
            self._arriving = [(_unnamed_file(), meta["bytes"]) for meta in self._metas]
            self._context_fds = [fd for fd, _ in self._arriving]
        self._receive(b"")

    def _receive(self, data: bytes) -> None:
        """Takes a piece of the contexts, which arrive one after the other, each beginning a frame of its own."""
        if data and not self._arriving:
            raise ProtocolError("more bytes of contexts than were announced")
        if data:
            fd, missing = self._arriving[0]
            write_all(fd, data)
            self._arriving[0] = (fd, missing - len(data))
        while self._arriving and self._arriving[0][1] <= 0:
            del self._arriving[0]
        if not self._arriving:
            self._spawn()

    # the worker

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self._pid, self._status, self._up = os.fork(), None, False
        if self._pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(signum, signal.SIG_DFL)
                assert self._open is not None
                Worker(theirs.detach(), self._stdout_in, self._stderr_in, self._folder, self._answer).run(
                    decode(self._open), self._context_fds or []
                )
            except BaseException:
                traceback.print_exc()
            os._exit(70)
        theirs.close()
        self._link = ours.detach()
        os.set_blocking(self._link, False)
        self._link_frames = Frames()
        self._watch(self._link, select.POLLIN)

    def _to_worker(self, kind: bytes, payload: bytes) -> None:
        self._link_out += pack(kind, payload)
        self._flush_link()

    def _flush_link(self) -> None:
        if self._link >= 0:
            self._flush(self._link, self._link_out)

    def _read_link(self) -> None:
        if self._link < 0:
            return
        while True:
            data = _read(self._link)
            if not data:
                break
            self._link_frames.feed(data)
            try:
                while True:
                    frame = self._link_frames.next()
                    if frame is None:
                        break
                    self._from_worker(*frame)
            except Exception:
                # The code found the descriptor and wrote to it.
                self._replace("the code disturbed the channel of the REPL")
                return
            if len(data) < _READ:
                return
        if data == b"" and self._status is None:
            # The end of the stream is seen before the end of the process, unless the code closed it and lives on.
            self._status = self._await_end(0.5)
            if self._status is None:
                self._replace("the code closed the descriptors of the REPL")
            else:
                self._replace(self._manner())

    def _await_end(self, patience: float) -> int | None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid:
                return status
            time.sleep(0.001)
        return None

    def _from_worker(self, kind: bytes, payload: bytes) -> None:
        if kind == b"Q":
            self._out += pack(kind, payload)
            self._flush_host()
        elif kind == b"D":
            self._done(decode(payload))
        elif kind == b"U":
            self._up = True
            self._send(kind, decode(payload))
        elif kind == b"F":
            self._fail(str(decode(payload)["error"]))
        else:
            raise ProtocolError(f"a frame {kind!r}")

    def _done(self, message: dict[str, Any]) -> None:
        cell = self._cell
        if cell is None or message["id"] != cell.id:
            raise ProtocolError("the end of a cell that does not run")
        status, error = message["status"], message["error"]
        self._drain()
        self._output[self._stdout].add_line(message["value"])
        self._output[self._stderr].add_line(message["traceback"])
        if cell.strikes and status == "error":
            status, error = "interrupted", self._interruption(cell)
        content, ready, note = message["answer"]
        self._answer = [content, ready]
        self._finish(status, error, note, message["locals"])

    def _finish(self, status: str, error: str | None, note: str | None, names: dict[str, str]) -> None:
        assert self._cell is not None
        notice, self._notice = self._notice, ""
        stderr = self._output[self._stderr].take()
        self._send(
            b"E",
            {
                "id": self._cell.id,
                "status": status,
                "error": error,
                "stdout": self._output[self._stdout].take(),
                "stderr": f"{notice}\n{stderr}" if notice else stderr,
                "answer": [*self._answer, note],
                "locals": names,
            },
        )
        self._cell = None

    def _collect(self, fd: int, most: int) -> None:
        """Reads what was printed, at most about that many bytes."""
        while most > 0:
            data = _read(fd)
            if not data:
                return
            self._output[fd].feed(data)
            most -= len(data)

    def _drain(self) -> None:
        """Reads all that was printed before now: no more than a pipe can hold, or a child that prints on and on would
        keep us here."""
        self._collect(self._stdout, 1 << 17)
        self._collect(self._stderr, 1 << 17)

    # limits

    def _tick(self) -> None:
        cell = self._cell
        if cell is None or cell.due is None or time.monotonic() < cell.due or self._ended:
            return
        if cell.strikes < 2:
            self._interrupt(cell)
        else:
            self._drain()
            seconds = time.monotonic() - cell.started
            why = f"killed after {seconds:.1f} s: the cell did not stop when it was interrupted"
            why += f" ({cell.reason or f'its time limit is {cell.timeout:g} s'})"
            self._replace(why, "killed")

    def _interrupt(self, cell: Cell) -> None:
        """Once for the worker and its children, as Ctrl-C in a terminal would; the second time for the worker alone,
        which may have been deaf, as `os.system` makes it."""
        cell.strikes += 1
        cell.due = time.monotonic() + cell.grace / 2
        if cell.strikes > 1:
            kill(self._pid, signal.SIGINT)
            return
        self._to_worker(b"A", encode({"id": cell.id}))
        self._send(b"N", {"id": cell.id})
        kill(-self._pid, signal.SIGINT)

    def _interruption(self, cell: Cell) -> str:
        if cell.reason:
            return f"interrupted after {time.monotonic() - cell.started:.1f} s: {cell.reason}"
        return f"interrupted after {cell.timeout:g} s, the time limit of a cell"

    def _manner(self) -> str:
        """How the worker ended, in words."""
        status = self._status
        if status is None or os.WIFEXITED(status):
            code = "?" if status is None else os.WEXITSTATUS(status)
            return f"the process of the REPL ended with exit status {code}"
        signum = os.WTERMSIG(status)
        try:
            name = signal.Signals(signum).name
        except ValueError:
            name = f"signal {signum}"
        hint = {
            "SIGKILL": ": somebody killed it, or memory ran out",
            "SIGXCPU": ": it used up its processor time",
            "SIGSEGV": ": it crashed",
        }.get(name, "")
        return f"the process of the REPL was ended by {name}{hint}"

    def _replace(self, why: str, status: str = "died") -> None:
        """Ends the worker with all its children and forks a fresh one."""
        self._watch(self._link, 0)
        self._end_worker()
        os.close(self._link)
        self._link, self._status = -1, None
        self._link_out.clear()
        self._drain()
        if not self._up:
            self._fail(f"{why}, before it could run anything")
            return
        if self._cell is not None:
            why += "; the namespace is lost and a fresh one has the contexts again"
            self._output[self._stderr].add_line(why + "\n")
            self._finish(status, why, None, {})
        else:
            self._notice = f"note: between the cells {why}; the names defined before are gone"
        self._spawn()

    def _end_worker(self) -> None:
        end_children(known=[self._pid] if self._pid else [])
        self._pid = 0

    def _fail(self, error: str) -> None:
        printed = self._output[self._stderr].take() if self._open else ""
        self._send(b"F", {"error": error, "details": printed})
        self._ended = True


def _read(fd: int) -> bytes | None:
    """What can be read at once; b"" at the end of the stream, None if there is nothing yet."""
    try:
        return os.read(fd, _READ)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.ECONNRESET, errno.EIO, errno.EBADF):
            return b""
        raise


def _unnamed_file() -> int:
    if _LINUX:
        return os.memfd_create("rlm-context")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def supervise(source: int, sink: int, contexts: list[int] | None, folder: str) -> None:
    """Runs a supervisor and ends the process."""
    become_subreaper()
    try:
        Supervisor(source, sink, contexts, folder).run()
    except BaseException:
        try:
            os.set_blocking(sink, True)
            write_all(
                sink,
                pack(b"F", encode({"error": "the supervisor failed", "details": traceback.format_exc()})),
            )
        except OSError:
            pass
        os._exit(70)
    os._exit(0)


# --- the worker: its channel ------------------------------------------------------------------------------------------


class SubcallError(str):
    """What stands in place of an answer when a sub-call failed: a text that starts with "Error: "."""

    __slots__ = ()
    __module__ = "__main__"


class _Ticket:
    """A thread that waits for a frame."""

    __slots__ = ("done", "reply", "signal")

    def __init__(self) -> None:
        self.done = False
        self.reply: Any = None
        self.signal = _thread.allocate_lock()
        self.signal.acquire()

    def wake(self) -> None:
        try:
            self.signal.release()
        except RuntimeError:
            pass  # it is awake


class Channel:
    """The worker's end of the link to its supervisor. Threads of the code share it: of those that wait, one reads
    for all, and hands that over when it has what it wants. So there is no thread of ours.

    An interrupt may come at any time, but only in the main thread, and only `Worker.on_interrupt` raises it. It does
    not while `guarded` is set, so that no frame is ever cut; then it sets `deferred`, and the main thread raises it as
    soon as it may.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._main = _thread.get_ident()
        self._frames = Frames()
        self._reading = _thread.allocate_lock()
        self._sending = _thread.allocate_lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._tickets: dict[int, _Ticket] = {}
        self._numbers = itertools.count(1)
        self._cells: deque[dict[str, Any]] = deque()
        self._cell = 0
        self._void = 0
        """The cell that is being interrupted."""
        self.guarded = True
        self.waiting = False
        """The main thread waits inside a query; an interrupt ends the wait and sets `guarded` in the same moment."""
        self.deferred = False

    def send(self, kind: bytes, message: Any) -> None:
        """From the main thread, guarded."""
        data = pack(kind, encode(message))
        with self._sending:
            write_all(self._fd, data)

    def next_cell(self) -> dict[str, Any]:
        """Waits for the next cell. From the main thread, guarded."""
        ticket = self._tickets[0] = _Ticket()
        self._wait(ticket, lambda: bool(self._cells), False)
        del self._tickets[0]
        cell = self._cells.popleft()
        self._cell = cell["id"]
        return cell

    def ask(self, query: dict[str, Any]) -> list[Any]:
        """Sends a query and returns its replies, each [text, failed]. From any thread.

        Raises:
            KeyboardInterrupt: the cell was interrupted.
            ValueError: the query is too large for one frame.
            TypeError: it holds something that is no str, number, list, dict, bool or None.
            RuntimeError: this is a forked child process.
        """
        if self._fd < 0:
            raise RuntimeError(
                "sub-models can be asked from the REPL's own process only: use threads instead"
            )
        number = next(self._numbers)
        payload = encode({"id": number, **query})
        if len(payload) > MAX_FRAME:
            raise ValueError(
                f"the prompts of one call may have {MAX_FRAME >> 20} MB together, and these have "
                f"{len(payload) >> 20} MB: send fewer at a time"
            )
        if self._void == self._cell:
            raise KeyboardInterrupt("the cell was interrupted")
        data = pack(b"Q", payload)
        main = _thread.get_ident() == self._main
        if main:
            self.guarded = True
        try:
            ticket = self._tickets[number] = _Ticket()
            if main and self.deferred:
                raise KeyboardInterrupt
            with self._sending:
                write_all(self._fd, data)
            self._wait(ticket, lambda: ticket.done, main)
        finally:
            self._tickets.pop(number, None)
            if main:
                self.guarded = False
                if self.deferred:
                    self.deferred = False
                    raise KeyboardInterrupt
        if ticket.reply is None:
            raise KeyboardInterrupt("the cell was interrupted")
        replies: list[Any] = ticket.reply
        return replies

    def _wait(self, ticket: _Ticket, done: Callable[[], bool], interruptible: bool) -> None:
        while not done():
            if self._reading.acquire(False):
                try:
                    while not done():
                        self._read(interruptible)
                finally:
                    self._reading.release()
                    for other in list(self._tickets.values()):
                        if other is not ticket:
                            other.wake()
                            break
            else:
                self._block(ticket.signal.acquire, interruptible)

    def _block(self, wait: Callable[[], Any], interruptible: bool) -> None:
        """Waits where an interrupt does no harm."""
        if not interruptible:
            wait()
            return
        self.waiting = True
        self.guarded = False
        if self.deferred:
            self.guarded = True
            raise KeyboardInterrupt
        wait()
        self.guarded = True
        self.waiting = False

    def _read(self, interruptible: bool) -> None:
        self._block(self._poll.poll, interruptible)
        try:
            data = os.read(self._fd, _READ)
        except OSError:
            data = b""
        if not data:
            os._exit(71)  # the code closed our descriptor, or the supervisor is gone
        self._frames.feed(data)
        while True:
            frame = self._frames.next()
            if frame is None:
                return
            self._dispatch(*frame)

    def _dispatch(self, kind: bytes, payload: bytes) -> None:
        message = decode(payload)
        if kind == b"R":
            ticket = self._tickets.pop(message["id"], None)
            if ticket is not None:
                ticket.reply = message["replies"]
                ticket.done = True
                ticket.wake()
        elif kind == b"X":
            self._cells.append(message)
            ticket = self._tickets.get(0)
            if ticket is not None:
                ticket.wake()
        elif kind == b"A":
            self._void = message["id"]
            for number, ticket in list(self._tickets.items()):
                if number:
                    ticket.done = True
                    ticket.wake()

    def leave(self) -> None:
        """In a forked child: gives the channel up."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


# --- the worker: cells ------------------------------------------------------------------------------------------------

_HIGH_FD = 700
"""Our own descriptors lie from here on, out of the way of code that closes those it did not open."""

_FUTURES = 0
for _name in __import__("__future__").all_feature_names:
    _FUTURES |= getattr(__import__("__future__"), _name).compiler_flag
_ONLY_AST = 0x400
_TOP_LEVEL_AWAIT = 0x2000
_COROUTINE = 0x80
_MOST_NAMES = 300
_MISSING = object()


class _Shown(str):
    """A text that looks the same whether it is printed or is the value of a cell."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Worker:
    """Runs cells in one namespace."""

    def __init__(self, link: int, stdout: int, stderr: int, folder: str, answer: list[Any]) -> None:
        parent = os.getppid()
        os.setsid()
        die_with_parent(parent, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        self._spare = [_move_high(fd) for fd in (null, stdout, stderr)]
        link = _move_high(link)
        self._renew_descriptors()
        self.pid = os.getpid()
        self._link = link
        self._folder = folder
        self._armed = False
        self._strikes = 0
        self._flags = 0
        self._values: dict[str, Any] = {}
        self._answer: dict[Any, Any] = {"content": answer[0], "ready": answer[1]}
        self._last_answer: list[Any] = [*answer, None]

    def run(self, spec: dict[str, Any], contexts: list[int]) -> None:
        # Contexts are read before the limits hold: they were measured by the host.
        try:
            self._enter(spec, contexts)
        except MemoryError:
            limit = spec["limits"]["memory_bytes"]
            self.channel.send(
                b"F",
                {
                    "error": f"the contexts do not fit in the memory of a REPL, {limit:,} bytes (limits: memory_bytes)"
                },
            )
            return
        import gc

        gc.enable()
        self.channel.send(b"U", {"pid": self.pid, "python": sys.version.split()[0]})
        while True:
            cell = self.channel.next_cell()
            self.channel.send(b"D", self._run_cell(cell["id"], cell["code"]))

    def _enter(self, spec: dict[str, Any], contexts: list[int]) -> None:
        self.channel = Channel(self._link)
        _set_limits(spec["limits"])
        os.chdir(self._folder)
        os.environ["HOME"] = os.environ["TMPDIR"] = self._folder
        self._make_streams()
        values = [read_context(meta["kind"], fd) for meta, fd in zip(spec["contexts"], contexts)]  # noqa: B905 (Python 3.9)
        close_all_but([*self._spare, self._link])
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        self._names: dict[str, Any] = main.__dict__
        self._names["__builtins__"] = builtins
        self._values = {f"context_{number}": value for number, value in enumerate(values)}
        if values:
            self._values["context"] = values[-1]
        self._values["history"] = spec["history"]
        self._values.update(self._functions())
        self._names.update(self._values, answer=self._answer)
        sys.argv = [""]
        os.register_at_fork(before=self._flush, after_in_child=self._after_fork)
        if spec["seed"] is not None:
            _seed(spec["seed"])

    def _make_streams(self) -> None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        sys.stdout = self._stdout = _stream(1)
        sys.stderr = self._stderr = _stream(2)
        vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)

    def _renew_descriptors(self) -> None:
        for fd, spare in enumerate(self._spare):
            os.dup2(spare, fd)

    def _after_fork(self) -> None:
        self.channel.leave()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_interrupt(self, *_: object) -> None:
        """SIGINT: from the supervisor, at most twice in a cell, or raised by the code itself."""
        if not self._armed or self._strikes >= 2:
            return
        if self.channel.guarded:
            self.channel.deferred = True
            return
        self._strikes += 1
        self.channel.guarded, self.channel.waiting = self.channel.waiting, False
        raise KeyboardInterrupt

    # one cell

    def _run_cell(self, number: int, code: str) -> dict[str, Any]:
        self._prepare()
        result: dict[str, Any] = {"id": number, "status": "ok", "error": None, "value": "", "traceback": ""}
        if not self._guard(lambda: self._perform(number, code, result)):
            result.update(status="error", error="KeyboardInterrupt", traceback="KeyboardInterrupt\n")
        if os.getpid() != self.pid:
            self._end_child(result)
        if not self._guard(self._read_answer):
            self._last_answer[2] = "reading `answer` took too long"
        self._restore()
        result["answer"] = self._last_answer
        result["locals"] = self._locals()
        return result

    def _guard(self, action: Callable[[], None]) -> bool:
        """Runs code of the user, in which an interrupt may come. Returns whether it came through to us."""
        try:
            try:
                self.channel.deferred = False
                self.channel.guarded = False
                self._armed = True
                action()
            finally:
                self._armed = False
                self.channel.guarded = True
        except KeyboardInterrupt:
            self._armed = False
            self.channel.guarded = True
            return False
        return True

    def _prepare(self) -> None:
        """Sets right what the last cell may have bent."""
        self._strikes = 0
        self._renew_descriptors()
        if self._stdout.closed or self._stderr.closed or sys.stdin is None or sys.stdin.closed:
            self._make_streams()
        sys.stdout, sys.stderr = self._stdout, self._stderr
        signal.signal(signal.SIGINT, self.on_interrupt)
        if sys.modules.get("__main__") is None or sys.modules["__main__"].__dict__ is not self._names:
            main = types.ModuleType("__main__")
            main.__dict__.update(self._names)
            sys.modules["__main__"] = main
            self._names = main.__dict__
        self._names.update(self._values)

    def _restore(self) -> None:
        """Takes back our process after a cell."""
        sys.settrace(None)
        sys.setprofile(None)
        if sys.getrecursionlimit() < 500:
            sys.setrecursionlimit(1000)
        self._flush()

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            try:
                stream.flush()
            except Exception:
                pass  # closed, or the code's own idea of a stream
        if _libc is not None:
            _libc.fflush(None)

    def _perform(self, number: int, code: str, result: dict[str, Any]) -> None:
        name = f"<cell {number}>"
        linecache.cache[name] = (len(code), None, io.StringIO(code, newline=None).readlines(), name)
        try:
            value = self._execute(name, code)
            if value is not None:
                builtins._ = value  # type: ignore[attr-defined]
                result["value"] = _bounded(repr(value)) + "\n"
        except SystemExit as stop:
            reason = stop.code
            result["status"] = "exit"
            result["error"] = "SystemExit" if reason is None else f"SystemExit: {_one_line(reason)}"
            if reason is not None and not isinstance(reason, int):
                result["traceback"] = _bounded(f"{reason}\n")
            result["code"] = 0 if reason is None else reason if isinstance(reason, int) else 1
        except BaseException as error:
            sys.settrace(None)
            result["status"] = "error"
            result["error"] = type(error).__name__
            result["error"] = _one_line_error(error)
            result["traceback"] = _bounded(_trace(error))

    def _execute(self, name: str, code: str) -> Any:
        """Runs a cell; returns the value of its last expression."""
        tree = compile(code, name, "exec", _ONLY_AST | _TOP_LEVEL_AWAIT | self._flags, True)
        last = None
        if tree.body and type(tree.body[-1]).__name__ == "Expr":
            import _ast

            last = _ast.Expression(tree.body.pop().value)
        if tree.body:
            body = compile(tree, name, "exec", _TOP_LEVEL_AWAIT | self._flags, True)
            self._flags |= body.co_flags & _FUTURES
            self._evaluate(body)
        if last is None:
            return None
        return self._evaluate(compile(last, name, "eval", _TOP_LEVEL_AWAIT | self._flags, True))

    def _evaluate(self, code: types.CodeType) -> Any:
        value = eval(code, self._names)
        if code.co_flags & _COROUTINE:
            import asyncio

            value = asyncio.run(value)
        return value

    def _end_child(self, result: dict[str, Any]) -> None:
        """The code forked, and its child came to the end of the cell."""
        text = result["traceback"]
        try:
            sys.stderr.write(text)
        except Exception:
            pass
        self._flush()
        os._exit({"ok": 0, "exit": result.get("code", 0)}.get(result["status"], 1) & 0xFF)

    # the answer

    def _read_answer(self) -> None:
        note = None
        value = self._names.get("answer", _MISSING)
        if value is not self._answer:
            if isinstance(value, dict):
                self._answer = value
            elif value is _MISSING or value is None:
                note = "`answer` was deleted or set to None; it is there again"
            elif callable(value) or isinstance(value, types.ModuleType):
                note = f"`answer` was rebound to a {_class_name(value)}; it is the answer dict again, so use another name"
            else:
                self._answer["content"], self._answer["ready"] = value, False
                note = (
                    f'`answer` was rebound to a {_class_name(value)}, which became answer["content"]; '
                    'set answer["ready"] = True to finish'
                )
        try:
            content = dict.get(self._answer, "content", "")
            text = "" if content is None else content if type(content) is str else str(content)
            ready = dict.get(self._answer, "ready", False)
            ready = ready.strip().lower() in ("true", "yes", "1") if isinstance(ready, str) else bool(ready)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            text, ready = self._last_answer[0], False
            note = f"`answer` could not be read: {_one_line_error(error)}"
        if ready and not text:
            ready = False
            note = 'answer["ready"] is set, but answer["content"] is empty: set the content'
        if len(text) > MAX_FRAME // 16:
            text, ready = text[: MAX_FRAME // 16], False
            note = f'answer["content"] may have {MAX_FRAME // 16:,} characters'
        try:
            dict.setdefault(self._answer, "content", "")
            dict.setdefault(self._answer, "ready", False)
        finally:
            self._names["answer"] = self._answer
            self._last_answer = [text, ready, note]

    # what the code finds

    def _functions(self) -> dict[str, Any]:
        ask = self._ask

        def llm_query(prompt: Any, model: str | None = None) -> str:
            """Asks a sub-model and returns its reply. A failed call returns a SubcallError (a str, "Error: ...").

            prompt: text, or a list of messages. model: its name; the default sub-model if None.
            """
            return ask("llm", [prompt], model, False)[0]

        def llm_query_batched(prompts: Iterable[Any], model: str | None = None) -> list[str]:
            """Asks a sub-model many prompts at once; returns the replies in their order. Failed ones are SubcallErrors."""
            return ask("llm", _as_list(prompts), model, True)

        def rlm_query(prompt: Any, model: str | None = None) -> str:
            """Like llm_query, but the prompt becomes the context of a child run that has a REPL of its own."""
            return ask("rlm", [prompt], model, False)[0]

        def rlm_query_batched(prompts: Iterable[Any], model: str | None = None) -> list[str]:
            """Like llm_query_batched, with one child run for each prompt."""
            return ask("rlm", _as_list(prompts), model, True)

        def SHOW_VARS() -> str:  # noqa: N802
            """Lists the names that the code has defined and what they are."""
            names = self._locals()
            if not names:
                return _Shown("No names have been defined yet.")
            return _Shown("\n".join(f"{name}: {description}" for name, description in names.items()))

        functions: list[Any] = [llm_query, llm_query_batched, rlm_query, rlm_query_batched, SHOW_VARS]
        for function in functions:
            function.__qualname__ = function.__name__
            function.__module__ = "__main__"
        return {**{function.__name__: function for function in functions}, "SubcallError": SubcallError}

    def _ask(self, kind: str, prompts: list[Any], model: str | None, batched: bool) -> list[str]:
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model must be a str or None, not {_class_name(model)}")
        if not prompts:
            return []
        replies = self.channel.ask({"kind": kind, "prompts": prompts, "model": model, "batched": batched})
        return [_reply(text, failed) for text, failed in replies]

    def _locals(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for name, value in list(self._names.items()):
            if type(name) is not str or name.startswith("__") or name in self._values or name == "answer":
                continue
            if len(names) >= _MOST_NAMES:
                names["..."] = f"{len(self._names) - len(self._values) - _MOST_NAMES:,} more"
                break
            names[name if len(name) <= 100 else name[:97] + "..."] = describe(value)
        return names


def _reply(text: str, failed: bool) -> str:
    if not failed:
        return text
    return SubcallError(text if text.startswith("Error: ") else "Error: " + text)


def _as_list(prompts: Iterable[Any]) -> list[Any]:
    if isinstance(prompts, (str, bytes, dict)):
        raise TypeError(f"prompts must be a list of prompts, not a {type(prompts).__name__}")
    return list(prompts)


def _move_high(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:  # a low limit of open files
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _stream(fd: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False), 1 << 15)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _set_limits(limits: dict[str, int]) -> None:
    memory = limits["memory_bytes"]
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        # Address space is also what threads reserve and never touch, so it gets room to spare; data is what is used.
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_AS, memory + (16 << 30)),
    ]
    for which, value in wanted:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (value, value))
        except (ValueError, OSError):
            if _LINUX:
                raise


def read_context(kind: str, fd: int) -> Any:
    """Reads a context from a file. The encoded forms are described in `rlm.context`."""
    size = os.fstat(fd).st_size
    if not size:
        return "" if kind == "str" else b""
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as pages, memoryview(pages) as data:
        if kind == "str":
            return str(data, "utf-8", "surrogatepass")
        if kind == "bytes":
            return bytes(data)
        return marshal.loads(data)


def _seed(seed: int) -> None:
    import random

    random.seed(seed)

    class NumpySeeder:
        """Seeds numpy when it is imported."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name != "numpy":
                return None
            sys.meta_path.remove(self)
            import importlib.util

            spec = importlib.util.find_spec(name)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def exec_module(module: types.ModuleType) -> None:
                    execute(module)
                    module.random.seed(seed & 0xFFFFFFFF)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, NumpySeeder())


# --- texts about values, made without running code of theirs ----------------------------------------------------------

_SIZED: tuple[tuple[Any, str], ...] = (
    (str, "characters"),
    (bytes, "bytes"),
    (bytearray, "bytes"),
    (list, ""),
    (tuple, ""),
    (dict, ""),
    (set, ""),
    (frozenset, ""),
    (deque, ""),
)
_class_attribute = type.__dict__["__name__"].__get__


def _class_name(value: Any) -> str:
    name = str(_class_attribute(type(value)))
    return name if len(name) <= 80 else name[:77] + "..."


def describe(value: Any) -> str:
    """A short description, in constant time."""
    kind = type(value)
    if value is None or kind is bool:
        return repr(value)
    if kind is float or (kind is int and value.bit_length() <= 64):
        return f"{kind.__name__} {value!r}"
    name = _class_name(value)
    for base, unit in _SIZED:
        if isinstance(value, base):
            return f"{name} of {base.__len__(value):,} {unit}".rstrip()
    if isinstance(value, type):
        return f"class {_class_attribute(value)}"[:100]
    return name


def _one_line(value: Any) -> str:
    text = " ".join(str(value)[:1000].split())
    return text if len(text) <= 300 else text[:297] + "..."


def _one_line_error(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = _one_line(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        text = "<its text could not be had>"
    return f"{name}: {text}" if text else name


def _bounded(text: str, limit: int = 1 << 20) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... [{len(text) - 2 * half:,} characters left out] ...\n{text[-half:]}"


def _trace(error: BaseException) -> str:
    """The traceback as Python shows it, without our frames."""
    try:
        shown = traceback.TracebackException(type(error), error, error.__traceback__)
        seen: list[Any] = [shown]
        for item in seen:
            item.stack[:] = [frame for frame in item.stack if frame.filename != __file__]
            inner = [item.__cause__, item.__context__, *(getattr(item, "exceptions", None) or ())]
            seen += [other for other in inner if other is not None]
        return "".join(shown.format())
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"{type(error).__name__}: its traceback could not be shown\n"


# --- stand-alone ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Serves one REPL over stdin and stdout: what a container runs."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    import tempfile

    supervise(source, sink, None, tempfile.mkdtemp(prefix="rlm-"))


if __name__ == "__main__":
    main()
