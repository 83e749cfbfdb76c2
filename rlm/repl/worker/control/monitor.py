"""What the supervisor does for one REPL: it sends the host what was printed, interrupts and kills the worker, and tells the
host how the worker ended."""

from __future__ import annotations

import os
import signal
import socket

from ..process.post import receive_report, send_job
from ..process.processes import remove_tree
from ..protocol.frames import Frames, ProtocolError, decode, encode, pack
from ..protocol.kinds import FromSupervisor, ToSupervisor
from ..sandbox.syscalls import UNKNOWN_STATUS
from .poll_loop import READ, Outbox, PollLoop, read
from .printed_output import PrintedOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Monitor:
    """Monitors one worker, from its fork to the end of its process tree.

    Args:
        folder: the worker's directory. The worker makes it, and the monitor removes it.
        interrupt: sends SIGINT to the worker and its children, as Ctrl-C in a terminal does.
        kill: kills the worker.
        drop: kills the worker, and ends its checkpoint.
        save: passes on the mailbox of a new checkpoint, as a list of one descriptor. An empty list: there is no
            checkpoint any more.
        limit: sets the bytes of memory that all processes of the REPL may take together.
        ping: asks the fork server for a PONG.
        on_end: called when nothing is left of the REPL.
    """

    def __init__(
        self,
        loop: PollLoop,
        folder: str,
        *,
        interrupt: Callable[[], None],
        kill: Callable[[], None],
        drop: Callable[[], None],
        save: Callable[[list[int]], None],
        limit: Callable[[int], None],
        ping: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._folder = folder
        self._interrupt, self._kill, self._drop = interrupt, kill, drop
        self._save, self._limit, self._ping, self._on_end = save, limit, ping, on_end
        self._printed = PrintedOutput(loop)
        self._post, theirs = socket.socketpair()
        self.fds = [theirs.detach(), *self._printed.fds]
        """The descriptors for the worker. `on_forked` closes them here."""
        self._frames = Frames()
        self._source = self._sink = -1
        self._outbox: Outbox | None = None
        self._grace = 0.0
        self._strikes = 0
        """Interrupts of the running cell that have been sent."""
        self._interrupts_in_flight = 0
        """Interrupts that have been ordered and may not have arrived yet."""
        self._pending_lines: list[str] | None = None
        """The host's request for the output of the cell. It is answered only when no interrupt is in flight, because the
        host then starts the next cell, which must not be interrupted."""
        self._verdict: tuple[str, str] | None = None
        """Status and reason to report when the worker ends. None: `describe_status` gives them. Empty: report nothing."""
        self._kill_reason = ""
        """Why the host ordered the worker's end."""
        self._done = 0
        """How many cells and extensions the worker had done when the last checkpoint was made."""
        self.checkpoint: int | None = None
        """The name of the checkpoint, if the worker has ended and left one. It is random, so that it cannot be guessed."""

    def on_forked(self) -> None:
        """Called when the worker has its descriptors."""
        os.close(self.fds[0])
        self._printed.on_forked()

    def connect_host(self, source: int, sink: int) -> None:
        """Connects the host. Its requests are received from now on.

        Args:
            source, sink: descriptors of the stream from and to the host. They may be the same one. The monitor closes
                them when nothing is left of the REPL. The host sees the end of the stream.
        """
        self._source, self._sink = source, sink
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        self._outbox = Outbox(self._loop, sink, self._read_host if source == sink else None)
        if source != sink:
            self._loop.watch(source, READ, self._read_host)

    def give_job(self, settings: dict[str, int], fds: Sequence[int]) -> bool:
        """Gives the worker its job.

        Args:
            settings: "max_output": characters to keep of what is printed, for each stream. "memory": bytes that all
                processes of the REPL may take together.
            fds: descriptors of the worker's stream to the host, and of files with the encoded contexts.

        Returns:
            False if the worker has ended already.
        """
        self._printed.keep(settings["max_output"])
        if not send_job(self._post, fds):
            return False
        self._limit(settings["memory"])
        self._loop.watch(self._post.fileno(), READ, self._read_post)
        return True

    def _read_post(self, events: int) -> None:
        """Reads the worker's report: there is a new checkpoint, or none any more. The code of a cell can send a report too,
        which affects this REPL alone."""
        report = receive_report(self._post)
        if report is None:
            self._loop.unwatch(self._post.fileno())
            return
        self._done, fds = report
        self._save(fds)
        for fd in fds:
            os.close(fd)

    # ends

    def on_tree_ended(self, status: int) -> None:
        """Called when nothing is left of the process tree. Tells the host, unless `on_worker_ended` has.

        Args:
            status: the status of the worker, as `os.waitpid` gives it.
        """
        if self.checkpoint is None:
            self._report_end(status)
        self._close()

    def on_worker_ended(self, status: int) -> None:
        """Called when only a checkpoint is left of the process tree. Tells the host.

        Args:
            status: the status of the worker, as `os.waitpid` gives it.
        """
        if self._outbox is None or self._verdict == ("", ""):
            self._drop()
            return
        self.checkpoint = int.from_bytes(os.urandom(6), "big")
        self._report_end(status)
        self._release_worker()

    def _report_end(self, status: int) -> None:
        if self._outbox is not None and self._verdict is None:
            killed = status == signal.SIGKILL or status == UNKNOWN_STATUS
            self._verdict = "died", (self._kill_reason if killed else "") or describe_status(status)
        if self._outbox is not None and self._verdict is not None and self._verdict[0]:
            checkpoint = None if self.checkpoint is None else [self.checkpoint, self._done]
            verdict = {"status": self._verdict[0], "manner": self._verdict[1]}
            self._tell_host(
                FromSupervisor.ENDED,
                {**verdict, "printed": self._printed.take_last(), "checkpoint": checkpoint},
            )

    def on_resumed(self) -> None:
        """Called when the checkpoint becomes the worker of another monitor."""
        self.checkpoint = None
        if self._outbox is not None:
            self._outbox.close()

    def on_too_much(self, reason: str) -> None:
        """Called when the fork server kills the worker because its process tree has too many processes or too much memory."""
        if self._verdict is None:
            self._verdict = "died", reason

    def on_failed(self, reason: str) -> None:
        """Called when the worker could not be started."""
        self._tell_host(FromSupervisor.ENDED, {"status": "died", "manner": reason, "printed": ["", ""]})
        self._close()

    def drop(self) -> None:
        """Ends the worker and its checkpoint, and reports nothing."""
        if self._verdict is None:
            self._verdict = "", ""
        self._drop()

    def _release_worker(self) -> None:
        """Closes what the worker shared with the monitor."""
        self._loop.cancel_timer(self)
        self._printed.close()
        if self._post.fileno() >= 0:
            self._loop.unwatch(self._post.fileno())
        self._post.close()

    def _close(self) -> None:
        self._release_worker()
        remove_tree(self._folder)
        if self._outbox is not None:
            self._outbox.close()
            if self._source != self._sink:
                self._loop.unwatch(self._source)
                os.close(self._source)
        self._on_end()

    # the host

    def _tell_host(self, kind: bytes, message: object) -> None:
        if self._outbox is not None:
            self._outbox.send(pack(kind, encode(message)))
            if self._outbox.broken:
                self.drop()

    def send(self, kind: bytes, payload: bytes) -> None:
        """Sends the host a frame, if it is connected."""
        if self._outbox is not None:
            self._outbox.send(pack(kind, payload))

    def _read_host(self, events: int) -> None:
        data = read(self._source)
        if data is None:
            return
        if not data:
            self._loop.unwatch(self._source)
            self.drop()
            return
        self._frames.feed(data)
        frame = self._frames.next()
        while frame is not None:
            self.on_frame(*frame)
            frame = self._frames.next()

    def on_frame(self, kind: bytes, payload: bytes) -> None:
        """Carries out a request of the host.

        Raises:
            ProtocolError: the kind of the frame is not known.
        """
        if kind == ToSupervisor.PING:
            self._ping()
            return
        if self.checkpoint is not None and kind != ToSupervisor.END:
            return  # sent before the host learned of the worker's end
        if kind == ToSupervisor.TAKE:
            self._loop.cancel_timer(self)
            self._pending_lines = decode(payload)["lines"]
            self._send_printed()
        elif kind == ToSupervisor.INTERRUPT:
            self._grace = decode(payload)["grace"]
            self._strikes = 0
            self._strike()
        elif kind == ToSupervisor.KILL:
            self._kill_reason = decode(payload)["why"]
            self._kill()
        elif kind == ToSupervisor.END:
            self.drop()
        else:
            raise ProtocolError(f"the host sent a frame {kind!r}")

    def _send_printed(self) -> None:
        """Answers the host's request for the output of a cell, if there is one and no interrupt is in flight."""
        if self._pending_lines is None or self._interrupts_in_flight:
            return
        lines, self._pending_lines = self._pending_lines, None
        self._tell_host(FromSupervisor.PRINTED, {"printed": self._printed.take(lines)})

    # interrupts; `protocol/kinds.py` draws the sequence

    def on_interrupted(self) -> None:
        """Called when the fork server has sent an interrupt."""
        self._interrupts_in_flight -= 1
        if self.checkpoint is None:
            self._send_printed()

    def _strike(self) -> None:
        """Interrupts the cell, and kills the worker on the third call. Calls itself again after half of the grace period.

        A second interrupt is needed because the first may be lost: during `os.system` the worker ignores SIGINT.
        """
        if self._strikes < 2:
            self._strikes += 1
            self._interrupts_in_flight += 1
            self._interrupt()
            self._loop.set_timer(self, self._grace / 2, self._strike)
        elif self._verdict is None:
            self._verdict = "killed", "it was killed"
            self._kill()


def describe_status(status: int) -> str:
    """How a worker ended, in words.

    Args:
        status: as `os.waitpid` gives it, or `UNKNOWN_STATUS`.
    """
    if status == UNKNOWN_STATUS:
        return "the process of the REPL ended"
    if os.WIFEXITED(status):
        return f"the process of the REPL ended with exit status {os.WEXITSTATUS(status)}"
    signum = os.WTERMSIG(status)
    try:
        name = signal.Signals(signum).name
    except ValueError:
        name = f"signal {signum}"
    hint = {
        "SIGKILL": ": it was killed, or memory ran out",
        "SIGXCPU": ": it used up its processor time",
        "SIGSEGV": ": it crashed",
    }.get(name, "")
    return f"the process of the REPL was ended by {name}{hint}"
