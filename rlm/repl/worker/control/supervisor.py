"""The process that stands beside all workers: it has the warm parent fork them, and watches them. Standard library only;
`warm.py` starts it as a fresh interpreter. It knows nothing of the host but its process id.

The host's messages are JSON after a length. First it says how things are to be, and is told why that cannot be, if so.
Then it asks for REPLs: with the first byte of each such message come the descriptors of the REPL's two streams and of its
contexts. One worker is always forked ahead.
"""

# ruff: noqa: PTH102, PTH118, PTH120, SIM105 (no pathlib, no contextlib: it shares its modules with the parent)

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys

from ..process import processes
from ..process.processes import MOST_FDS, receive_fds
from ..protocol.frames import encode, pack
from ..protocol.kinds import FromForkServer, FromSupervisor, ToForkServer
from .fork_server import ORDER, REPORT, TOO_MANY_PROCESSES, ForkServer
from .monitor import Watch
from .poll_loop import READ, Loop, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..sandbox.sandbox import Sandbox

LENGTH = struct.Struct(">I")
_CROWDED = "the code started more processes than it may have, and they were killed"
_HEAVY = "the processes of the code took more memory than they may have together, and were killed"


class Supervisor:
    """Starts REPLs and sees them to their ends.

    Args:
        folder: a directory for those of the workers, which exists, and is removed in the end.
        fork_into: `sandbox.fork_into` with the settings of the one that the workers are to live in; None: in none.

    Raises:
        NoSandbox: there can be none.
    """

    def __init__(
        self, folder: str, fork_into: Callable[[str, Callable[[Sandbox], None]], str] | None = None
    ) -> None:
        self._folder = folder
        self.loop = Loop()
        self._watches: dict[int, Watch] = {}
        self._count = 0
        processes.become_subreaper()
        self._parent, theirs = socket.socketpair()
        self._pid = 0
        if fork_into is None:
            self._pid = os.fork()
            if self._pid == 0:
                try:
                    processes.close_all_but([theirs.fileno()])
                    ForkServer(theirs, folder).run()
                finally:
                    os._exit(0)
        else:

            def serve(sandbox: Sandbox) -> None:
                processes.close_all_but([theirs.fileno(), *sandbox.descriptors])
                ForkServer(theirs, folder, sandbox).run()

            root = os.path.join(folder, "root")
            os.mkdir(root, 0o700)
            reason = fork_into(root, serve)
            if reason:
                raise NoSandbox(reason)
        theirs.close()
        self._reports = bytearray()
        self.loop.watch(self._parent.fileno(), READ, self._read_parent)
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)  # the host ends us

    def fork(self, make: Callable[..., Watch] = Watch) -> Watch:
        """Has a worker forked.

        Args:
            make: makes what watches it, with the arguments of `Watch`.

        Raises:
            OSError: there can be no more descriptors, or the parent is gone.
        """
        self._count += 1
        return self._begin(ToForkServer.FORK, self._count, make)

    def resume(self, checkpoint: int) -> Watch | None:
        """Has the checkpoint of a REPL take the place of its worker, which has ended.

        Args:
            checkpoint: as `Watch.saved` named it.

        Returns:
            What watches it; None if there is no such checkpoint.

        Raises:
            OSError: see `fork`.
        """
        for number, old in self._watches.items():
            if old.checkpoint == checkpoint:
                watch = self._begin(ToForkServer.RESUME, number, Watch)
                old.leave()
                return watch
        return None

    def _begin(self, kind: bytes, number: int, make: Callable[..., Watch]) -> Watch:
        def over() -> None:
            watch = self._watches.pop(number, None)
            if watch is not None:
                self.over(watch)

        watch = self._watches[number] = make(
            self.loop,
            os.path.join(self._folder, str(number)),
            interrupt=lambda: self._order(ToForkServer.INTERRUPT, number),
            kill=lambda: self._order(ToForkServer.KILL, number),
            drop=lambda: self._order(ToForkServer.DROP, number),
            save=lambda fds: self._order(ToForkServer.SAVE, number, fds),
            limit=lambda memory: self._order(ToForkServer.LIMIT, number, value=memory),
            over=over,
        )
        self._order(kind, number, watch.fds)
        watch.forked()
        return watch

    def over(self, watch: Watch) -> None:
        """Nothing is left of a REPL."""

    def run(self) -> None:
        """Serves to the end, and leaves nobody behind."""
        try:
            self.loop.run()
        finally:
            self._parent.close()  # which has the parent end all workers, and what they left
            try:
                if self._pid:
                    os.waitpid(self._pid, 0)
            except ChildProcessError:
                pass
            processes.end_children()  # one in a sandbox, and all in there with it; what one that was killed left
            processes.remove_tree(self._folder)

    def _order(self, kind: bytes, number: int, fds: list[int] | None = None, value: int = 0) -> None:
        order = ORDER.pack(kind, number, value)
        try:
            if fds:
                socket.send_fds(self._parent, [order], fds)
            else:
                self._parent.sendall(order)
        except OSError:
            self.loop.end()

    def _read_parent(self, events: int) -> None:
        data = read(self._parent.fileno())
        if not data:
            self.loop.end()  # somebody killed it, and all workers with it
            return
        self._reports += data
        while len(self._reports) >= REPORT.size:
            kind, number, value = REPORT.unpack_from(self._reports)
            del self._reports[: REPORT.size]
            watch = self._watches.get(number)
            if watch is None:
                continue
            if kind == FromForkServer.INTERRUPTED:
                watch.interrupted()
            elif kind == FromForkServer.ENDED:
                watch.ended(value)
            elif kind == FromForkServer.SAVED:
                watch.saved(value)
            elif kind == FromForkServer.TOO_MUCH:
                watch.condemn(_CROWDED if value == TOO_MANY_PROCESSES else _HEAVY)
            else:
                watch.failed(f"no process can be forked: {os.strerror(value)}")


class NoSandbox(Exception):  # noqa: N818
    """There can be no sandbox, for the reason that the message is."""


class _Local(Supervisor):
    """Serves the host on whose machine it is.

    Args:
        control: the stream with the host's messages.
        host: its process id.
    """

    def __init__(self, *args: Any, control: socket.socket, host: int) -> None:
        super().__init__(*args)
        self._control = control
        self._spare: Watch | None = None
        """The one that waits."""
        self.loop.watch(control.fileno(), READ, self._serve)
        self._host = host
        pidfd = _watch_process(host)
        if pidfd is not None:
            self.loop.watch(pidfd, READ, lambda _: self.loop.end())
        else:
            self._look_for_host()
        self._fork_ahead()

    def _look_for_host(self) -> None:
        if os.getppid() != self._host:
            self.loop.end()
        self.loop.alarm("host", 1.0, self._look_for_host)

    def over(self, watch: Watch) -> None:
        if watch is self._spare:
            self._spare = None  # somebody ended it; the next one that is asked for is forked then

    def _fork_ahead(self) -> None:
        if self._spare is None:
            try:
                self._spare = self.fork()
            except OSError:
                pass  # whoever asks for a REPL will hear of it

    def _serve(self, events: int) -> None:
        """Takes one message."""
        try:
            head, fds = receive_fds(self._control, LENGTH.size, MOST_FDS)
            if not head:
                self.loop.end()
                return
            head += _exactly(self._control, LENGTH.size - len(head))
            message = json.loads(_exactly(self._control, LENGTH.unpack(head)[0]))
        except (OSError, EOFError):
            self.loop.end()
            return
        try:
            if message["checkpoint"] is None:
                self._start(fds, message["settings"])
            else:
                self._resume(message["checkpoint"], fds, message["settings"])
        finally:
            for fd in fds[1:]:
                os.close(fd)
        self.loop.alarm("spare", 0.0, self._fork_ahead)  # once nothing else is to be done

    def _start(self, fds: list[int], settings: dict[str, int]) -> None:
        stream, *rest = fds
        spare, self._spare = self._spare, None
        if spare is None or not spare.enlist(settings, rest):
            try:
                spare = self.fork()
            except OSError as error:
                _refuse(stream, f"no process can be forked: {error}")
                return
            spare.enlist(settings, rest)
        spare.listen(stream, stream)

    def _resume(self, checkpoint: int, fds: list[int], settings: dict[str, int]) -> None:
        stream, *rest = fds
        try:
            watch = self.resume(checkpoint)
        except OSError as error:
            _refuse(stream, f"no process can be had: {error}")
            return
        if watch is None:
            _refuse(stream, "it is gone")
            return
        watch.enlist(settings, rest)
        watch.listen(stream, stream)


def _refuse(stream: int, why: str) -> None:
    """Tells the host that there is no REPL for it."""
    os.write(
        stream, pack(FromSupervisor.ENDED, encode({"status": "died", "manner": why, "printed": ["", ""]}))
    )
    os.close(stream)


def main(control_fd: str, host: str) -> None:
    """Serves until the host closes its end of the control stream or dies.

    Args:
        control_fd: a descriptor of it.
        host: the host's process id.
    """
    control = socket.socket(fileno=int(control_fd))
    settings: dict[str, Any] = json.loads(_exactly(control, LENGTH.unpack(_exactly(control, LENGTH.size))[0]))
    folder = settings["folder"]
    try:
        sandbox = settings["sandbox"]
        if sandbox is None:
            fork_into = None
        else:
            from ..sandbox import sandbox as box

            fork_into = lambda root, run: box.fork_into(sandbox, root, run)  # noqa: E731
        _prepare_interpreter(settings)
        os.mkdir(folder, 0o700)
        supervisor = _Local(folder, fork_into, control=control, host=int(host))
    except BaseException as error:
        processes.remove_tree(folder)
        no_sandbox = isinstance(error, NoSandbox)
        _say(control, {"failure": str(error) if no_sandbox else repr(error), "no_sandbox": no_sandbox})
        return
    _say(control, {"failure": None})
    supervisor.run()


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    try:
        control.sendall(LENGTH.pack(len(data)) + data)
    except OSError:
        pass  # the host is gone, which we shall see


def _exactly(control: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = control.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _prepare_interpreter(settings: dict[str, Any]) -> None:
    """What `site` would do, without running the .pth files of the host's environment."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    sys.path[:] = [path for path in sys.path if path not in ("", here)] + settings["packages"]
    sys.prefix, sys.exec_prefix = settings["prefix"], settings["exec_prefix"]
    package = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]  # so that the code does not import the worker by accident
    import site

    site.setquit()
    site.sethelper()
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _watch_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where there is such a thing: the control stream alone
    would stay open in forked children of the host."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
