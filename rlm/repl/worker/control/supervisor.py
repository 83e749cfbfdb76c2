"""The supervisor: the process that starts REPLs for the host and monitors them. It has the fork server fork the workers.

`rlm/environments/fork_server.py` starts it as a fresh interpreter. It uses the standard library alone.

Messages from and to the host are JSON with the length before it. The host first sends the settings, and gets the reason if
they are impossible. Then it asks for REPLs. With the first byte of each request come descriptors: the two streams of the
REPL, and files with its contexts. One worker is always forked ahead of need.
"""

# ruff: noqa: PTH102, PTH118, PTH120, SIM105 (no pathlib, no contextlib: the fork server has the same modules)

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
from .monitor import Monitor
from .poll_loop import READ, PollLoop, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..sandbox.sandbox import Sandbox

LENGTH = struct.Struct(">I")
_TOO_MANY_PROCESSES = "the code started more processes than it may have, and they were killed"
_TOO_MUCH_MEMORY = "the processes of the code took more memory than they may have together, and were killed"


class Supervisor:
    """Starts REPLs and monitors them.

    Args:
        folder: an existing directory for the directories of the workers. The supervisor removes it when it ends.
        fork_into: `sandbox.fork_into_sandbox` with the settings of the sandbox for all workers. None: no sandbox.

    Raises:
        NoSandbox: the sandbox cannot be made.
    """

    def __init__(
        self, folder: str, fork_into: Callable[[str, Callable[[Sandbox], None]], str] | None = None
    ) -> None:
        self._folder = folder
        self.loop = PollLoop()
        self._monitors: dict[int, Monitor] = {}
        """The monitors of all REPLs, by number. A REPL keeps its number when its checkpoint becomes the worker."""
        self._last_number = 0
        processes.become_subreaper()
        self._fork_server, theirs = socket.socketpair()
        self._fork_server_pid = 0
        """0 in a sandbox, where the fork server was orphaned by its parent, so that its process id is not known."""
        if fork_into is None:
            self._fork_server_pid = os.fork()
            if self._fork_server_pid == 0:
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
        self.loop.watch(self._fork_server.fileno(), READ, self._read_fork_server)
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)  # the end of the host's stream ends the supervisor

    def fork(self, make: Callable[..., Monitor] = Monitor) -> Monitor:
        """Has a worker forked.

        Args:
            make: makes the monitor, with the arguments of `Monitor`.

        Raises:
            OSError: there are no descriptors left.
        """
        self._last_number += 1
        return self._start(ToForkServer.FORK, self._last_number, make)

    def resume(self, checkpoint: int) -> Monitor | None:
        """Has a checkpoint become the worker of its REPL.

        Args:
            checkpoint: `Monitor.checkpoint`.

        Returns:
            A new monitor. None: there is no such checkpoint.

        Raises:
            OSError: see `fork`.
        """
        for number, old in self._monitors.items():
            if old.checkpoint == checkpoint:
                monitor = self._start(ToForkServer.RESUME, number, Monitor)
                old.on_resumed()
                return monitor
        return None

    def _start(self, kind: bytes, number: int, make: Callable[..., Monitor]) -> Monitor:
        def on_end() -> None:
            monitor = self._monitors.pop(number, None)
            if monitor is not None:
                self.on_monitor_ended(monitor)

        monitor = self._monitors[number] = make(
            self.loop,
            os.path.join(self._folder, str(number)),
            interrupt=lambda: self._order(ToForkServer.INTERRUPT, number),
            kill=lambda: self._order(ToForkServer.KILL, number),
            drop=lambda: self._order(ToForkServer.DROP, number),
            save=lambda fds: self._order(ToForkServer.SAVE, number, fds),
            limit=lambda memory: self._order(ToForkServer.LIMIT, number, value=memory),
            ping=lambda: self._order(ToForkServer.PING, number),
            on_end=on_end,
        )
        self._order(kind, number, monitor.fds)
        monitor.on_forked()
        return monitor

    def on_monitor_ended(self, monitor: Monitor) -> None:
        """Called when nothing is left of a REPL."""

    def run(self) -> None:
        """Serves until the loop is ended, then ends the fork server with all process trees."""
        try:
            self.loop.run()
        finally:
            self._fork_server.close()  # the fork server then ends all trees, and itself
            try:
                if self._fork_server_pid:
                    os.waitpid(self._fork_server_pid, 0)
            except ChildProcessError:
                pass
            # What is left: a fork server in a sandbox, with which the kernel ends everything in the sandbox; and the
            # orphans of a fork server that was killed.
            processes.end_children()
            processes.remove_tree(self._folder)

    def _order(self, kind: bytes, number: int, fds: list[int] | None = None, value: int = 0) -> None:
        order = ORDER.pack(kind, number, value)
        try:
            if fds:
                socket.send_fds(self._fork_server, [order], fds)
            else:
                self._fork_server.sendall(order)
        except OSError:
            self.loop.end()

    def _read_fork_server(self, events: int) -> None:
        data = read(self._fork_server.fileno())
        if not data:
            self.loop.end()  # the fork server was killed, and its workers with it
            return
        self._reports += data
        while len(self._reports) >= REPORT.size:
            kind, number, value = REPORT.unpack_from(self._reports)
            del self._reports[: REPORT.size]
            monitor = self._monitors.get(number)
            if monitor is None:
                continue
            if kind == FromForkServer.INTERRUPTED:
                monitor.on_interrupted()
            elif kind == FromForkServer.ENDED:
                monitor.on_tree_ended(value)
            elif kind == FromForkServer.SAVED:
                monitor.on_worker_ended(value)
            elif kind == FromForkServer.PONG:
                monitor.send(FromSupervisor.PONG, b"")
            elif kind == FromForkServer.TOO_MUCH:
                monitor.on_too_much(_TOO_MANY_PROCESSES if value == TOO_MANY_PROCESSES else _TOO_MUCH_MEMORY)
            else:
                monitor.on_failed(f"no process can be forked: {os.strerror(value)}")


class NoSandbox(Exception):  # noqa: N818
    """The sandbox cannot be made. The message is the reason."""


class _LocalSupervisor(Supervisor):
    """Serves a host on the same machine.

    Args:
        control: the stream from and to the host.
        host: the process id of the host.
    """

    def __init__(self, *args: Any, control: socket.socket, host: int) -> None:
        super().__init__(*args)
        self._control = control
        self._spare: Monitor | None = None
        """The worker that was forked ahead."""
        self.loop.watch(control.fileno(), READ, self._serve)
        self._host = host
        pidfd = _open_pidfd(host)
        if pidfd is not None:
            self.loop.watch(pidfd, READ, lambda _: self.loop.end())
        else:
            self._check_host()
        self._fork_ahead()

    def _check_host(self) -> None:
        """Ends the supervisor if the host has ended. Called every second, where there are no pidfds."""
        if os.getppid() != self._host:
            self.loop.end()
        self.loop.set_timer("host", 1.0, self._check_host)

    def on_monitor_ended(self, monitor: Monitor) -> None:
        if monitor is self._spare:
            self._spare = None  # it was killed from outside; the next request forks a worker

    def _fork_ahead(self) -> None:
        if self._spare is None:
            try:
                self._spare = self.fork()
            except OSError:
                pass  # the next request tries again, and reports the error

    def _serve(self, events: int) -> None:
        """Does what one message of the host asks for."""
        try:
            head, fds = receive_fds(self._control, LENGTH.size, MOST_FDS)
            if not head:
                self.loop.end()
                return
            head += _receive_exactly(self._control, LENGTH.size - len(head))
            message = json.loads(_receive_exactly(self._control, LENGTH.unpack(head)[0]))
        except (OSError, EOFError):
            self.loop.end()
            return
        try:
            if message["checkpoint"] is None:
                self._open(fds, message["settings"])
            else:
                self._reopen(message["checkpoint"], fds, message["settings"])
        finally:
            for fd in fds[1:]:
                os.close(fd)
        self.loop.set_timer("spare", 0.0, self._fork_ahead)  # after all that is waiting in the loop

    def _open(self, fds: list[int], settings: dict[str, int]) -> None:
        """Starts a REPL, with the worker that was forked ahead if there is one."""
        stream, *rest = fds
        monitor, self._spare = self._spare, None
        if monitor is None or not monitor.give_job(settings, rest):
            try:
                monitor = self.fork()
            except OSError as error:
                _refuse(stream, f"no process can be forked: {error}")
                return
            monitor.give_job(settings, rest)
        monitor.connect_host(stream, stream)

    def _reopen(self, checkpoint: int, fds: list[int], settings: dict[str, int]) -> None:
        """Has a REPL go on with its checkpoint."""
        stream, *rest = fds
        try:
            monitor = self.resume(checkpoint)
        except OSError as error:
            _refuse(stream, f"the checkpoint cannot be resumed: {error}")
            return
        if monitor is None:
            _refuse(stream, "the checkpoint is gone")
            return
        monitor.give_job(settings, rest)
        monitor.connect_host(stream, stream)


def _refuse(stream: int, reason: str) -> None:
    """Tells the host, over the stream of a REPL, that there is no such REPL."""
    message = {"status": "died", "manner": reason, "printed": ["", ""]}
    os.write(stream, pack(FromSupervisor.ENDED, encode(message)))
    os.close(stream)


def main(control_fd: str, host: str) -> None:
    """Serves until the host closes its end of the control stream, or ends.

    Args:
        control_fd: the descriptor of the control stream.
        host: the process id of the host.
    """
    control = socket.socket(fileno=int(control_fd))
    (size,) = LENGTH.unpack(_receive_exactly(control, LENGTH.size))
    settings: dict[str, Any] = json.loads(_receive_exactly(control, size))
    folder = settings["folder"]
    try:
        sandbox_settings = settings["sandbox"]
        if sandbox_settings is None:
            fork_into = None
        else:
            from ..sandbox.sandbox import fork_into_sandbox

            fork_into = lambda root, run: fork_into_sandbox(sandbox_settings, root, run)  # noqa: E731
        _prepare_interpreter(settings)
        os.mkdir(folder, 0o700)
        supervisor = _LocalSupervisor(folder, fork_into, control=control, host=int(host))
    except BaseException as error:
        processes.remove_tree(folder)
        no_sandbox = isinstance(error, NoSandbox)
        _tell_host(control, {"failure": str(error) if no_sandbox else repr(error), "no_sandbox": no_sandbox})
        return
    _tell_host(control, {"failure": None})
    supervisor.run()


def _tell_host(control: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    try:
        control.sendall(LENGTH.pack(len(data)) + data)
    except OSError:
        pass  # the host is gone: the end of the stream follows


def _receive_exactly(control: socket.socket, size: int) -> bytes:
    """
    Raises:
        EOFError: the stream ended before.
    """
    data = b""
    while len(data) < size:
        piece = control.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _prepare_interpreter(settings: dict[str, Any]) -> None:
    """Sets up what the code of cells finds in `sys` and `builtins`, as `site` does it, but without running the .pth files of
    the host's environment. Raises the soft limit of open files to the hard one."""
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


def _open_pidfd(pid: int) -> int | None:
    """A pidfd of the host, which becomes readable when the host ends. None where the system has none.

    The control stream is not enough: it stays open in forked children of the host.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
