"""The process between the host and the worker."""

# ruff: noqa: PTH102, PTH103 (no pathlib, no contextlib)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import os
import select
import signal
import time
import traceback

from .cells import Worker
from .output import Output
from .processes import LINUX, become_subreaper, end_children, kill, reap, remove_tree
from .wire import Frames, ProtocolError, decode, encode, pack, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_READ = 1 << 16
_OUTPUT = 20_000
"""Characters that are kept of what a worker prints before the host has said how many."""
# Plain numbers and the bare module: the enumerations of `signal` cost each process 200 KB.
_SIGINT, _SIGTERM, _SIGHUP = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)
_SIGNALS = (int(signal.SIGCHLD), _SIGTERM, _SIGHUP)


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
        self.prepare()
        try:
            while not self._ended:
                self.turn()
        finally:
            self._end_worker()
            remove_tree(self._folder)
            self._flush_host()

    def prepare(self) -> None:
        """Makes what the loop needs, and a worker if it needs no more than we have."""
        self._stdout, self._stdout_in = os.pipe()
        self._stderr, self._stderr_in = os.pipe()
        if self._context_fds is not None:
            self._spawn()  # first of all, as pages that are changed before a fork are copied once more after it
        os.set_blocking(self._stdout, False)
        os.set_blocking(self._stderr, False)
        self._output = {fd: Output(_OUTPUT) for fd in (self._stdout, self._stderr)}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        for signum in _SIGNALS:
            _signal.signal(signum, _awake)
        _signal.signal(_SIGINT, _signal.SIG_IGN)
        _signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        os.set_blocking(self._source, False)
        os.set_blocking(self._sink, False)
        self._watch(self._wake_read, select.POLLIN)
        self._watch(self._source, select.POLLIN)
        self._out += pack(b"H", encode({"pid": os.getpid()}))  # goes with the next frame: nobody waits for it

    def turn(self) -> None:
        """Waits for something to happen and sees to it."""
        for fd, events in self._poll.poll(self._patience()):
            self._handle(fd, events)
        self._tick()

    def dismantle(self) -> None:
        """Takes back what `prepare` did."""
        _signal.set_wakeup_fd(-1)
        for signum in _SIGNALS:
            _signal.signal(signum, _signal.SIG_DFL)
        for fd in (
            self._wake_read,
            self._wake_write,
            self._stdout,
            self._stdout_in,
            self._stderr,
            self._stderr_in,
            self._link,
        ):
            os.close(fd)

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
        elif fd == self._wake_read:
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
        signals = _read(self._wake_read) or b""
        if _SIGTERM in signals or _SIGHUP in signals:
            self._ended = True
        self._status = reap().get(self._pid, self._status)
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
        self._output = {fd: Output(message["max_output"]) for fd in self._output}
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
            self._start()

    # the worker

    def _start(self) -> None:
        """Has a worker make its namespace."""
        assert self._open is not None
        if not self._pid:
            self._spawn()
        self._to_worker(b"O", self._open)

    def _spawn(self) -> None:
        ours, theirs = _socket.socketpair()
        self._pid, self._status, self._up = os.fork(), None, False
        if self._pid == 0:
            try:
                _signal.set_wakeup_fd(-1)
                for signum in _SIGNALS:
                    _signal.signal(signum, _signal.SIG_DFL)
                worker = Worker(theirs.detach(), self._stdout_in, self._stderr_in)
                worker.run(self._context_fds or [], self._folder)
            except BaseException:
                traceback.print_exc()
            finally:
                # Whatever happens, even to the line above once the code closed its descriptors: the worker must not
                # return into what is its supervisor's to do.
                os._exit(70)
        theirs.close()
        self._adopt(ours.detach())

    def _adopt(self, link: int) -> None:
        """Begins to listen to a worker."""
        self._link = link
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
            time.sleep(0.0002)
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
        if cell.strikes:
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
        """Interrupts the worker and its children, as Ctrl-C in a terminal would. A second time because the first may
        be lost: `os.system` makes the worker deaf."""
        cell.strikes += 1
        cell.due = time.monotonic() + cell.grace / 2
        if cell.strikes == 1:
            self._to_worker(b"A", encode({"id": cell.id}))
            self._send(b"N", {"id": cell.id})
        kill(-self._pid, _SIGINT)

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
        if self._ended:
            return  # it said why it cannot go on
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
        assert self._open is not None
        self._open = encode({**decode(self._open), "answer": self._answer})
        self._start()

    def _end_worker(self) -> None:
        if self._pid and self._status is None:
            kill(self._pid, _signal.SIGKILL)
            self._await_end(0.1)  # mostly there is nobody else, and then nobody has to be looked for
        end_children(known=[self._pid] if self._pid else [])
        self._pid = 0

    def _fail(self, error: str) -> None:
        self._send(b"F", {"error": error, "details": self._output[self._stderr].take()})
        self._ended = True


def _awake(signum: int, frame: object) -> None:
    """The number of the signal comes through the wake-up pipe; this keeps it from ending us."""


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
    if LINUX:
        return os.memfd_create("rlm-context")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def supervise(source: int, sink: int, contexts: list[int] | None, folder: str) -> int:
    """Runs a supervisor, for which this process was made. The arguments are those of `Supervisor`.

    Returns:
        The exit status for the process.
    """
    become_subreaper()
    try:
        try:
            os.mkdir(folder, 0o700)
        except FileNotFoundError:  # whoever cleans up old files may have taken the one that it is in
            os.makedirs(folder, 0o700)
        Supervisor(source, sink, contexts, folder).run()
    except BaseException:
        message = {"error": "the supervisor failed", "details": traceback.format_exc()}
        try:
            os.set_blocking(sink, True)
            write_all(sink, pack(b"F", encode(message)))
        except OSError:
            pass  # the host is gone
        return 70
    return 0
