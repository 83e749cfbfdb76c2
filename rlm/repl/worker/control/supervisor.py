"""The supervisor: the process that starts REPLs for a host and monitors them. It orders the fork server to fork the workers.

`Supervisor` does what every supervisor does. `local_supervisor` serves a host on the same machine, `relay` a host at the other
end of one byte stream.
"""

# ruff: noqa: PTH102, PTH118 (no pathlib, no contextlib: the fork server has the same modules)

from __future__ import annotations

import os
import signal
import socket

from ..process import processes
from ..protocol.kinds import FromForkServer, FromSupervisor, ToForkServer
from .fork_server import ORDER, REPORT, TOO_MANY_PROCESSES, ForkServer
from .monitor import Monitor
from .poll_loop import READ, PollLoop, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sandbox.sandbox import Sandbox

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
        """0 in a sandbox: a process between the two forked the fork server and ended, so the process id is not known here."""
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
        """Orders the fork server to fork a worker.

        Args:
            make: makes the monitor, with the arguments of `Monitor`.

        Raises:
            OSError: there are no descriptors left.
        """
        self._last_number += 1
        return self._start(ToForkServer.FORK, self._last_number, make)

    def resume(self, checkpoint: int) -> Monitor | None:
        """Makes a checkpoint the worker of its REPL.

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
            # Two kinds of children may be left. One is a fork server in a sandbox: the kernel ends everything in the
            # sandbox with it. The other is an orphan of a fork server that was killed.
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
