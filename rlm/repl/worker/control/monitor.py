"""What is done for one REPL beside its worker: to collect what other programs print, to stop it, and to tell the host how
it ended."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import socket

from ..process import streams
from ..process.output import Output
from ..process.post import receive_report, send_job
from ..process.processes import LINUX, remove_tree
from ..protocol.frames import Frames, ProtocolError, decode, encode, pack
from ..protocol.kinds import FromSupervisor, ToSupervisor
from ..sandbox.syscalls import UNKNOWN
from .poll_loop import READ, Loop, Outbox, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PIECE = 1 << 16


class Watch:
    """A worker, from its fork to its end.

    Args:
        folder: the worker's own directory, which the worker makes and this removes.
        interrupt: sends the worker and its children what Ctrl-C in a terminal would.
        kill: kills the worker.
        drop: ends all that there is of it, checkpoints too.
        save: is given a descriptor of a new checkpoint's mailbox; or nothing, if there is no checkpoint any more.
        limit: is given the bytes of memory that all processes of the REPL may have together.
        over: is called when nothing is left.
    """

    def __init__(
        self,
        loop: Loop,
        folder: str,
        *,
        interrupt: Callable[[], None],
        kill: Callable[[], None],
        drop: Callable[[], None],
        save: Callable[[list[int]], None],
        limit: Callable[[int], None],
        over: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._folder = folder
        self._interrupt, self._kill, self._drop = interrupt, kill, drop
        self._save, self._limit, self._over = save, limit, over
        pipes = os.pipe(), os.pipe()
        self._pipes = [pipe[0] for pipe in pipes]
        self._file = unnamed_file(streams.SHARED)
        self._memory = mmap.mmap(self._file, streams.SHARED)
        self._post, theirs = socket.socketpair()
        self.fds = [theirs.detach(), pipes[0][1], pipes[1][1], self._file]
        """What goes to the worker, and is closed here by `forked`."""
        self._outputs: list[Output] = []
        self._frames = Frames()
        self._source = self._sink = -1
        self._outbox: Outbox | None = None
        self._grace = 0.0
        self._strikes = 0
        """Interrupts of the cell that runs."""
        self._flying = 0
        """Interrupts that have been asked for and may still come."""
        self._asked: list[str] | None = None
        """The host's question for the output, which waits for them: the next cell must not get one."""
        self._end: tuple[str, str] | None = None
        """How it ended, where that is not the worker's own doing: status and words. Empty: nobody wants to know."""
        self._suspicion = ""
        """Why the host has the worker killed, in words."""
        self._done = 0
        """How much of the work was done at the last checkpoint."""
        self.checkpoint: int | None = None
        """A name for that checkpoint, which nobody can guess, if the worker has ended and it has not."""

    def forked(self) -> None:
        """The worker has its descriptors."""
        for fd in self.fds:
            os.close(fd)
        for number, pipe in enumerate(self._pipes):
            os.set_blocking(pipe, False)
            self._loop.watch(pipe, READ, lambda _, number=number: self._collect(number, _PIECE))  # type: ignore[misc]

    def listen(self, source: int, sink: int) -> None:
        """Takes orders from the host.

        Args:
            source, sink: descriptors of the stream from and to it; may be one. They are closed in the end, so that this is
                what the end of the stream means to the host.
        """
        self._source, self._sink = source, sink
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        self._outbox = Outbox(self._loop, sink, self._read_host if source == sink else None)
        if source != sink:
            self._loop.watch(source, READ, self._read_host)

    def enlist(self, settings: dict[str, int], fds: Sequence[int]) -> bool:
        """Gives the worker its work.

        Args:
            settings: "max_output", characters that are kept of what goes down a pipe; "memory", as `limit` is given.
            fds: descriptors of its stream and of files with the encoded contexts.

        Returns:
            Whether it was there to take it.
        """
        self._outputs = [Output(settings["max_output"]), Output(settings["max_output"])]
        if not send_job(self._post, fds):
            return False
        self._limit(settings["memory"])
        self._loop.watch(self._post.fileno(), READ, self._read_post)
        return True

    def _read_post(self, events: int) -> None:
        """The worker has a new checkpoint, or none. The code may have sent that too: it is passed on to nobody but those
        who have to do with this REPL alone."""
        report = receive_report(self._post)
        if report is None:
            self._loop.watch(self._post.fileno(), 0, self._read_post)
            return
        self._done, fds = report
        self._save(fds)
        for fd in fds:
            os.close(fd)

    def ended(self, status: int) -> None:
        """The worker has ended, and its children and checkpoints with it. Tells the host what was printed last.

        Args:
            status: as waitpid gives it.
        """
        if self.checkpoint is None:
            self._tell_end(status)
        self._close()

    def saved(self, status: int) -> None:
        """The worker has ended, and its children with it, and its checkpoint waits. Tells the host of that.

        Args:
            status: as waitpid gives it.
        """
        if self._outbox is None or self._end == ("", ""):
            self._drop()
            return
        self.checkpoint = int.from_bytes(os.urandom(6), "big")
        self._tell_end(status)
        self._give_up()

    def _tell_end(self, status: int) -> None:
        if self._outbox is not None and self._end is None:
            killed = status == signal.SIGKILL or status == UNKNOWN
            self._end = "died", (self._suspicion if killed else "") or manner(status)
        if self._outbox is not None and self._end is not None and self._end[0]:
            self._drain()
            for number, output in enumerate(self._outputs):
                output.feed(streams.rest(self._memory, number))
            printed = [output.take() for output in self._outputs]
            checkpoint = None if self.checkpoint is None else [self.checkpoint, self._done]
            how = {"status": self._end[0], "manner": self._end[1]}
            self._say(FromSupervisor.ENDED, {**how, "printed": printed, "checkpoint": checkpoint})

    def leave(self) -> None:
        """Another one watches what became of the checkpoint."""
        self.checkpoint = None
        if self._outbox is not None:
            self._outbox.close()

    def condemn(self, why: str) -> None:
        """The worker is being killed, for a reason."""
        if self._end is None:
            self._end = "died", why

    def failed(self, why: str) -> None:
        """There is no worker."""
        self._say(FromSupervisor.ENDED, {"status": "died", "manner": why, "printed": ["", ""]})
        self._close()

    def drop(self) -> None:
        """Ends the worker, and tells nobody how."""
        if self._end is None:
            self._end = "", ""
        self._drop()

    def _give_up(self) -> None:
        """Gives up what it shares with the worker."""
        self._loop.alarm(self, None, self._step)
        for pipe in self._pipes:
            self._loop.watch(pipe, 0, self._read_host)
            os.close(pipe)
        self._pipes = []
        self._memory.close()
        if self._post.fileno() >= 0:
            self._loop.watch(self._post.fileno(), 0, self._read_post)
        self._post.close()

    def _close(self) -> None:
        self._give_up()
        remove_tree(self._folder)
        if self._outbox is not None:
            self._outbox.close()
            if self._source != self._sink:
                self._loop.watch(self._source, 0, self._read_host)
                os.close(self._source)
        self._over()

    # the host

    def _say(self, kind: bytes, message: object) -> None:
        if self._outbox is not None:
            self._outbox.send(pack(kind, encode(message)))
            if self._outbox.gone:
                self.drop()

    def send(self, kind: bytes, payload: bytes) -> None:
        """Sends the host something."""
        if self._outbox is not None:
            self._outbox.send(pack(kind, payload))

    def _read_host(self, events: int) -> None:
        data = read(self._source)
        if data is None:
            return
        if not data:
            self._loop.watch(self._source, 0, self._read_host)
            self.drop()
            return
        self._frames.feed(data)
        frame = self._frames.next()
        while frame is not None:
            self.obey(*frame)
            frame = self._frames.next()

    def obey(self, kind: bytes, payload: bytes) -> None:
        """Does what the host asks for."""
        if self.checkpoint is not None and kind != ToSupervisor.END:
            return  # the host had not heard of the end
        if kind == ToSupervisor.TAKE:
            self._loop.alarm(self, None, self._step)
            self._asked = decode(payload)["lines"]
            self._hand_over()
        elif kind == ToSupervisor.INTERRUPT:
            self._grace = decode(payload)["grace"]
            self._strikes = 0
            self._step()
        elif kind == ToSupervisor.KILL:
            self._suspicion = decode(payload)["why"]
            self._kill()
        elif kind == ToSupervisor.END:
            self.drop()
        else:
            raise ProtocolError(f"the host sent a frame {kind!r}")

    # output

    def _collect(self, number: int, most: int) -> None:
        """Reads what was printed, at most about that many bytes."""
        streams.mark_read(self._memory, number, True)
        while most > 0:
            data = read(self._pipes[number])
            if data == b"":
                self._loop.watch(self._pipes[number], 0, self._read_host)
            if not data:
                return
            if self._outputs:
                self._outputs[number].feed(data)
            most -= len(data)

    def _drain(self) -> None:
        """Reads all that was printed before now: no more than a pipe can hold, or a child that prints on and on would
        keep us here."""
        for number in (0, 1):
            self._collect(number, 1 << 17)

    def _hand_over(self) -> None:
        """The cell has run, and some of its output is here, or it was being interrupted."""
        if self._asked is None or self._flying:
            return
        lines, self._asked = self._asked, None
        self._drain()
        for number, output in enumerate(self._outputs):
            streams.mark_read(self._memory, number, False)
            output.add_line(lines[number])
        self._say(FromSupervisor.PRINTED, {"printed": [output.take() for output in self._outputs]})

    # interrupts

    def interrupted(self) -> None:
        """An interrupt has been delivered."""
        self._flying -= 1
        if self.checkpoint is None:
            self._hand_over()

    def _step(self) -> None:
        """Goes one step further with a cell that is to end: interrupts it, and its children; then again, because the
        first may be lost: `os.system` makes the worker deaf; then kills it."""
        if self._strikes < 2:
            self._strikes += 1
            self._flying += 1
            self._interrupt()
            self._loop.alarm(self, self._grace / 2, self._step)
        elif self._end is None:
            self._end = "killed", "it was killed"
            self._kill()


def manner(status: int) -> str:
    """How a worker ended, in words."""
    if status == UNKNOWN:
        return "the process of the REPL ended"
    if os.WIFEXITED(status):
        return f"the process of the REPL ended with exit status {os.WEXITSTATUS(status)}"
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


def unnamed_file(size: int | None = None) -> int:
    """A descriptor of a file in memory, or one that nobody else sees.

    Args:
        size: bytes that it has and keeps, whoever finds it: to read behind its end would end us.
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
