"""The process beside the worker: it reads what other programs print, stops, reaps and ends. It sleeps as long as nothing
of that is called for."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import errno
import mmap
import os
import select
import signal
import time
import traceback

from . import streams
from .cells import Worker
from .output import Output
from .processes import become_subreaper, end_children, kill, reap, remove_tree
from .wire import Frames, ProtocolError, decode, encode, pack, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_READ = 1 << 16
_OUTPUT = 20_000
_OUTPUTS = Output(_OUTPUT), Output(_OUTPUT)
"""Made before the fork, as most supervisors need no others, and many not even these."""
# Plain numbers and the bare module: the enumerations of `signal` cost each process 200 KB.
_SIGINT, SIGTERM, _SIGHUP = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)
_SIGNALS = (int(signal.SIGCHLD), SIGTERM, _SIGHUP)


class Supervisor:
    """Stands beside one worker until its host goes away or ends it.

    Args:
        folder: the worker's own directory, which the worker makes and this removes.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._source = self._sink = -1
        self._frames = Frames()
        self._out = bytearray()
        self._pid = 0
        self._status: int | None = None
        """How the worker ended."""
        self._strikes = 0
        """Interrupts of the cell that runs."""
        self._grace = 0.0
        self._due: float | None = None
        """When to go one step further: interrupt again, kill."""
        self._poll = select.poll()
        self._masks: dict[int, int] = {}
        self._outputs = _OUTPUTS
        self._ended = False

    def prepare(self) -> None:
        """Makes what the worker shares with us, and all that we need: pages that change before a fork are not copied
        after it."""
        become_subreaper()
        self._memory = mmap.mmap(-1, streams.SHARED)
        self._pipes = [os.pipe(), os.pipe()]
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write, *[pipe[0] for pipe in self._pipes]):
            os.set_blocking(fd, False)
        for signum in _SIGNALS:
            _signal.signal(signum, _awake)
        _signal.signal(_SIGINT, _signal.SIG_IGN)
        _signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for fd in (self._wake_read, *[pipe[0] for pipe in self._pipes]):
            self.watch(fd, select.POLLIN)

    def fork(self, enlist: Callable[[], list[int]], keep: list[int]) -> None:
        """Forks the worker. The arguments are those of `Worker.run`."""
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _signal.set_wakeup_fd(-1)
                for signum in _SIGNALS:
                    _signal.signal(signum, _signal.SIG_DFL)
                worker = Worker(self._pipes[0][1], self._pipes[1][1], self._memory)
                worker.run(enlist, keep, self._folder)
            except BaseException:
                traceback.print_exc()
            finally:
                # Whatever happens, even to the line above once the code closed its descriptors: the worker must not
                # return into what is its supervisor's to do.
                os._exit(70)

    def listen(self, source: int, sink: int) -> None:
        """Takes orders from the host, from now on.

        Args:
            source, sink: descriptors of the stream from and to it; may be one.
        """
        self._source, self._sink = source, sink
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        self.watch(source, select.POLLIN)

    def limit(self, max_output: int) -> None:
        """Sets how many characters are kept of what goes down a pipe."""
        if max_output != _OUTPUT:
            self._outputs = Output(max_output), Output(max_output)

    def run(self) -> None:
        """Serves to the end, and leaves nothing of the worker."""
        try:
            while not self._ended:
                for fd, events in self._poll.poll(self._patience()):
                    self.handle(fd, events)
                self._tick()
        finally:
            self._end_worker()
            remove_tree(self._folder)
            try:
                os.set_blocking(self._sink, True)
                write_all(self._sink, bytes(self._out))
            except OSError:
                pass  # the host is gone

    def end(self) -> None:
        """Has `run` come to its end."""
        self._ended = True

    def fail(self, details: str) -> None:
        """Tells the host, if there is one, that this supervisor failed."""
        message = {"status": "died", "manner": "the supervisor failed", "printed": ["", details]}
        try:
            os.set_blocking(self._sink, True)
            write_all(self._sink, pack(b"E", encode(message)))
        except OSError:
            pass  # the host is gone

    def watch(self, fd: int, mask: int) -> None:
        """Has `handle` called for these events of a descriptor; for none any more if `mask` is 0."""
        if self._masks.get(fd, 0) == mask:
            return
        if mask:
            self._poll.register(fd, mask)
            self._masks[fd] = mask
        elif self._masks.pop(fd, 0):
            self._poll.unregister(fd)

    def handle(self, fd: int, events: int) -> None:
        """Sees to a descriptor on which something happened."""
        if fd == self._source and events & ~select.POLLOUT:
            self._read_host()
        elif fd == self._wake_read:
            self._wake()
        for number, pipe in enumerate(self._pipes):
            if fd == pipe[0]:
                self._collect(number, _READ)
        if events & select.POLLOUT and fd == self._sink:
            self._flush_host()

    def _patience(self) -> float | None:
        if self._due is None:
            return None
        return float(max(0.0, (self._due - time.monotonic()) * 1000 + 1))

    def _wake(self) -> None:
        signals = read(self._wake_read) or b""
        if SIGTERM in signals or _SIGHUP in signals:
            self._ended = True
        self._status = reap().get(self._pid, self._status)
        if self._status is not None:
            self.bury("died", self._manner())

    # the host

    def send(self, kind: bytes, payload: bytes) -> None:
        self._out += pack(kind, payload)
        self._flush_host()

    def _flush_host(self) -> None:
        self._ended |= not self.flush(self._sink, self._out)

    def flush(self, fd: int, buffer: bytearray) -> bool:
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
        mask = self._masks.get(fd, 0) & select.POLLIN
        self.watch(fd, mask | (select.POLLOUT if buffer else 0))
        return True

    def _read_host(self) -> None:
        data = read(self._source)
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
            self.obey(*frame)

    def obey(self, kind: bytes, payload: bytes) -> None:
        """Does what the host asks for."""
        if kind == b"T":
            self._hand_over(decode(payload)["lines"])
        elif kind == b"I":
            self._grace = decode(payload)["grace"]
            self._strikes = 0
            self._interrupt()
        elif kind == b"Z":
            self._ended = True
        else:
            raise ProtocolError(f"the host sent a frame {kind!r}")

    # output

    def _collect(self, number: int, most: int) -> None:
        """Reads what was printed, at most about that many bytes."""
        streams.mark_read(self._memory, number, True)
        while most > 0:
            data = read(self._pipes[number][0])
            if not data:
                return
            self._outputs[number].feed(data)
            most -= len(data)

    def _drain(self) -> None:
        """Reads all that was printed before now: no more than a pipe can hold, or a child that prints on and on would
        keep us here."""
        for number in (0, 1):
            self._collect(number, 1 << 17)

    def _hand_over(self, lines: list[str]) -> None:
        """The cell has run, and some of its output is here, or it was being interrupted."""
        self._due, self._strikes = None, 0
        self._drain()
        for number, output in enumerate(self._outputs):
            streams.mark_read(self._memory, number, False)
            output.add_line(lines[number])
        self.send(b"P", encode({"printed": [output.take() for output in self._outputs]}))

    # ends

    def _tick(self) -> None:
        if self._due is None or time.monotonic() < self._due or self._ended:
            return
        if self._strikes < 2:
            self._interrupt()
        else:
            self.bury("killed", "it was killed")

    def _interrupt(self) -> None:
        """Interrupts the worker and its children, as Ctrl-C in a terminal would. A second time because the first may
        be lost: `os.system` makes the worker deaf."""
        self._strikes += 1
        self._due = time.monotonic() + self._grace / 2
        kill(-self._pid, _SIGINT)

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

    def bury(self, status: str, manner: str) -> None:
        """Ends the worker, if it has not ended, and all its children, and tells the host what was printed last."""
        if self._ended:
            return
        self._ended = True
        self._end_worker()
        self._drain()
        for number, output in enumerate(self._outputs):
            output.feed(streams.rest(self._memory, number))
        printed = [output.take() for output in self._outputs]
        self.send(b"E", encode({"status": status, "manner": manner, "printed": printed}))

    def _end_worker(self) -> None:
        if self._pid and self._status is None:
            kill(self._pid, _signal.SIGKILL)
            self._await_end(0.1)  # mostly there is nobody else, and then nobody has to be looked for
        end_children(known=[self._pid] if self._pid else [])
        self._pid = 0

    def _await_end(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while self._status is None and time.monotonic() < deadline:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:
                return
            if pid:
                self._status = status
            else:
                time.sleep(0.0002)


def _awake(signum: int, frame: object) -> None:
    """The number of the signal comes through the wake-up pipe; this keeps it from ending us."""


def read(fd: int) -> bytes | None:
    """What can be read at once; b"" at the end of the stream, None if there is nothing yet."""
    try:
        return os.read(fd, _READ)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.ECONNRESET, errno.EIO, errno.EBADF):
            return b""
        raise
