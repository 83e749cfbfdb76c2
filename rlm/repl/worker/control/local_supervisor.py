"""The supervisor of a host on the same machine. `rlm/environments/fork_server.py` starts it as a fresh interpreter.

Messages from and to the host are JSON with the length before it. The host first sends the settings. The supervisor answers
with the reason if it cannot work with them. Then the host asks for REPLs. The first byte of each request carries
descriptors: the supervisor's stream and the worker's stream, and files with the contexts. One worker is always forked ahead
of need.
"""

# ruff: noqa: PTH102, PTH120, SIM105 (no pathlib, no contextlib: the fork server has the same modules)

from __future__ import annotations

import json
import os
import socket
import struct
import sys

from ..process import processes
from ..process.processes import MOST_FDS, receive_fds
from ..protocol.frames import encode, pack
from ..protocol.kinds import FromSupervisor
from .poll_loop import READ
from .supervisor import NoSandbox, Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .monitor import Monitor

_LENGTH = struct.Struct(">I")


class LocalSupervisor(Supervisor):
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
            head, fds = receive_fds(self._control, _LENGTH.size, MOST_FDS)
            if not head:
                self.loop.end()
                return
            head += _receive_exactly(self._control, _LENGTH.size - len(head))
            message = json.loads(_receive_exactly(self._control, _LENGTH.unpack(head)[0]))
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
        self.loop.set_timer("spare", 0.0, self._fork_ahead)  # after all events that wait in the loop

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
        """Makes the checkpoint of a REPL its worker."""
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
    """Tells the host, over the stream of a REPL, why the REPL cannot start."""
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
    (size,) = _LENGTH.unpack(_receive_exactly(control, _LENGTH.size))
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
        supervisor = LocalSupervisor(folder, fork_into, control=control, host=int(host))
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
        control.sendall(_LENGTH.pack(len(data)) + data)
    except OSError:
        pass  # the host is gone: the end of the stream follows


def _receive_exactly(control: socket.socket, size: int) -> bytes:
    """Receives `size` bytes.

    Raises:
        EOFError: the stream ended before `size` bytes came.
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
    """A pidfd of the host, which becomes readable when the host ends. None where the system has no pidfds.

    The control stream is not enough: it stays open in forked children of the host.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
