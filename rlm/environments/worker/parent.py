"""The process that the supervisors of local REPLs are forked from. Standard library only; it is started by `warm.py`
as a fresh interpreter, knows nothing of the host but its process id, and stays small, because a fork costs what its
parent holds.

The host asks for a REPL with a message over a stream of its own: a length, JSON, and with its first byte the
descriptors of the REPL's two streams and of its contexts. One REPL is always forked ahead.
"""

# Few imports, as each costs memory in every REPL: no pathlib, no contextlib.
# ruff: noqa: PTH102, PTH120, SIM105

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time

from . import processes
from .recruit import MOST_FDS, Recruit, receive_fds
from .rehearsal import rehearse
from .wire import encode, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LENGTH = struct.Struct(">I")


def main(control_fd: int, host: int, settings: dict[str, Any]) -> None:
    """Serves until the host closes its end of the control stream or dies."""
    processes.become_subreaper()
    control = socket.socket(fileno=control_fd)
    _prepare_interpreter(settings)
    folder = settings["folder"]
    os.mkdir(folder, 0o700)
    try:
        Parent(control, host, folder).run()
    finally:
        processes.remove_tree(folder)


def _prepare_interpreter(settings: dict[str, Any]) -> None:
    """What `site` would do, without running the .pth files of the host's environment."""
    here = os.path.dirname(os.path.dirname(__file__))
    sys.path[:] = [path for path in sys.path if path not in ("", here)] + settings["packages"]
    os.environ["HOME"] = os.environ["TMPDIR"] = settings["folder"]  # room for those of each worker
    sys.prefix, sys.exec_prefix = settings["prefix"], settings["exec_prefix"]
    for name in [name for name in sys.modules if name.partition(".")[0] == __package__]:
        del sys.modules[name]  # the code is not to find us by accident
    import site

    site.setquit()
    site.sethelper()
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Parent:
    def __init__(self, control: socket.socket, host: int, folder: str) -> None:
        self._control = control
        self._host = host
        self._folder = folder
        self._repls: dict[int, Recruit] = {}
        """All that live, by the process id of the supervisor."""
        self._spare: Recruit | None = None
        """The one that waits."""
        self._count = 0

    def run(self) -> None:
        rehearse()
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        host_fd = _watch_process(self._host)
        if host_fd is not None:
            poll.register(host_fd, select.POLLIN)
        while os.getppid() == self._host:
            if self._spare is None and not poll.poll(0):
                self._fork_spare()
            ready = [fd for fd, _ in poll.poll(None if host_fd is not None else 1000)]
            if wake_read.fileno() in ready:
                if signal.SIGTERM in wake_read.recv(4096):
                    break
                self._reap()
            if host_fd in ready:
                break
            if self._control.fileno() in ready and not self._serve():
                break
        self._end()

    def _serve(self) -> bool:
        """Takes one message. Returns whether the host is there."""
        try:
            head, fds = receive_fds(self._control, LENGTH.size, MOST_FDS)
            if not head:
                return False
            head += self._exactly(LENGTH.size - len(head))
            message = json.loads(self._exactly(LENGTH.unpack(head)[0]))
        except (OSError, EOFError):
            return False
        if "kill" in message:
            if message["kill"] in self._repls:
                processes.kill(message["kill"], signal.SIGKILL)
            return True
        try:
            self._enlist(fds, message["max_output"])
        except OSError as error:
            end = {"status": "died", "manner": f"no process can be forked: {error}", "printed": ["", ""]}
            os.write(fds[0], pack(b"E", encode(end)))
            os.close(fds[0])
        for fd in fds[1:]:
            os.close(fd)
        return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._control.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _fork(self) -> Recruit:
        self._count += 1
        recruit = Recruit(self._folder, str(self._count))
        self._repls[recruit.pid] = recruit
        return recruit

    def _fork_spare(self) -> None:
        try:
            self._spare = self._fork()
        except OSError:
            pass  # whoever asks for a REPL will hear of it

    def _enlist(self, fds: list[int], max_output: int) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            try:
                spare.enlist(fds, max_output)
                return
            except OSError:
                spare.leave()  # somebody ended it
        self._fork().enlist(fds, max_output)

    def _reap(self) -> None:
        """Buries supervisors, and what a supervisor that was killed left behind."""
        ended = processes.reap()
        if any(status for status in ended.values()):
            ended.update(processes.end_children(spare=[pid for pid in self._repls if pid not in ended]))
        for pid in ended:
            recruit = self._repls.pop(pid, None)
            if recruit is None:
                continue
            processes.remove_tree(recruit.folder)
            if recruit.stream >= 0:
                os.close(recruit.stream)
            if recruit is self._spare:
                self._spare.leave()
                self._spare = None

    def _end(self) -> None:
        """Asks the supervisors to end, and ends those that do not."""
        for pid in self._repls:
            processes.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 3.0
        while self._repls and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.002)
        processes.end_children(known=self._repls)


def _watch_process(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where there is such a thing: the control stream alone
    would stay open in forked children of the host."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
