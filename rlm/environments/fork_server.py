"""The host's handles on fork servers, the processes that local REPLs are forked from. There is one for each isolation and
its settings. It starts at the first use, and again when it has ended."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlm.environments.isolation import SandboxSettings, package_folders, variables, worker_command
from rlm.errors import REPLError

_LENGTH = struct.Struct(">I")
_CROWDED = (errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors that say that this machine has no room for one more descriptor, and nothing about the supervisor."""
_PATIENCE = 30.0
"""Seconds that a supervisor may take to start on a busy machine."""


class NoSandboxError(REPLError):
    """The sandbox cannot be made. The message is the reason."""


class ForkServer:
    """Starts REPLs on this machine: the host's end of a supervisor and its fork server. All methods may be called from any
    thread.

    Args:
        sandbox: the settings of the sandbox that the REPLs live in; None: no sandbox.
    """

    def __init__(self, sandbox: SandboxSettings | None) -> None:
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        """The supervisor."""
        self._control: socket.socket | None = None
        self._refusal: str | None = None
        self._folder = Path()

    @property
    def running(self) -> bool:
        """Whether `start` returns at once. Otherwise it starts the supervisor first."""
        process = self._process
        return self._control is not None and process is not None and process.returncode is None

    def start(self, fds: Sequence[int], settings: Mapping[str, int]) -> Callable[[], None]:
        """Starts a REPL.

        Args:
            fds: the supervisor's stream, the worker's stream, and files with the encoded contexts. The supervisor gets
                copies; the caller keeps these.
            settings: of `REPLSettings.for_supervisor`.

        Returns:
            See `Links.end_supervisor`.

        Raises:
            NoSandboxError: this machine allows no sandbox.
            REPLError: the supervisor cannot be started, or cannot be reached.
        """
        return self._send({"settings": settings, "checkpoint": None}, fds)

    def resume(self, fds: Sequence[int], settings: Mapping[str, int], checkpoint: int) -> Callable[[], None]:
        """Makes a checkpoint the worker of its REPL. If the checkpoint is gone, the supervisor says so over its stream.

        Args:
            fds: the supervisor's stream, and the worker's stream. See `start`.
            checkpoint: the supervisor's name for the checkpoint.

        Returns:
            See `start`.

        Raises:
            REPLError: see `start`.
        """
        return self._send({"settings": settings, "checkpoint": checkpoint}, fds)

    def close(self) -> None:
        """Ends the supervisor, the fork server and all their REPLs. The next `start` starts them anew."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Called in a forked child of the host: leaves the supervisor to the host."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # the child cannot wait for a process of the host
        self._process = self._control = None

    def _send(self, message: dict[str, Any], fds: Sequence[int]) -> Callable[[], None]:
        data = _packed(message)
        with self._lock:
            for attempt in (1, 2):
                if self._control is None or self._process is None or self._process.poll() is not None:
                    self._end()
                    self._launch()
                assert self._control is not None
                assert self._process is not None
                try:
                    sent = _send_fds(self._control, data, fds)
                    self._control.sendall(data[sent:])
                    return partial(_kill, self._process)
                except OSError as error:
                    if error.errno in _CROWDED:
                        raise REPLError(f"the supervisor of REPLs cannot be reached: {error}") from error
                    self._end()
                    if attempt == 2:
                        raise REPLError(f"the supervisor of REPLs does not answer: {error}") from error
        raise AssertionError("the second attempt returns or raises")

    def _launch(self) -> None:
        if self._refusal is not None:
            raise NoSandboxError(self._refusal)
        ours, theirs = socket.socketpair()
        ours.settimeout(_PATIENCE)
        self._folder = folder = Path(tempfile.gettempdir(), f"rlm-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            self._process = subprocess.Popen(
                worker_command("control.local_supervisor:main", str(theirs.fileno()), str(os.getpid())),
                env=variables(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            ours.close()
            raise REPLError(f"the supervisor of REPLs cannot be started: {error}") from error
        finally:
            theirs.close()
        try:
            settings = {
                "packages": package_folders(),
                "prefix": sys.prefix,
                "exec_prefix": sys.exec_prefix,
                "folder": str(folder),
                "sandbox": None if self._sandbox is None else self._sandbox.plan(),
            }
            ours.sendall(_packed(settings))
            (size,) = _LENGTH.unpack(_received(ours, _LENGTH.size))
            said = json.loads(_received(ours, size))
            if said["failure"] is not None:
                if said["no_sandbox"]:
                    self._refusal = said["failure"]
                    raise NoSandboxError(said["failure"])
                raise REPLError(f"the supervisor of REPLs did not start: {said['failure']}")
        except BaseException as error:
            ours.close()
            self._end()
            if isinstance(error, OSError):
                raise REPLError(f"the supervisor of REPLs did not start: {error}") from error
            raise
        self._control = ours

    def _end(self) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._folder.exists():  # the supervisor was killed
                shutil.rmtree(self._folder, ignore_errors=True)


def _send_fds(stream: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    """Does what `socket.send_fds` does, with a raised limit on open files. The kernel counts the descriptors in flight of all
    processes of a user, also those that the code in a REPL sends to itself. It refuses a sender whose limit on open files is
    below that number. Code in a REPL has a lower limit than the host can set for itself, so the host raises its own limit
    during the call."""
    try:
        return socket.send_fds(stream, [data], fds)
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return socket.send_fds(stream, [data], fds)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _packed(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


def _received(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.recv(size - len(data))
        if not piece:
            raise ConnectionError("the process ended")
        data += piece
    return data


def _kill(supervisor: subprocess.Popen[bytes]) -> None:
    """Kills a supervisor and its fork server, and so all their workers. Takes no lock: a thread that waits for this supervisor
    may hold it."""
    if supervisor.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(supervisor.pid, signal.SIGKILL)


_fork_servers: dict[SandboxSettings | None, ForkServer] = {}


def fork_server(sandbox: SandboxSettings | None = None) -> ForkServer:
    """The fork server of this process for REPLs in a sandbox with these settings, or in no sandbox."""
    return _fork_servers.setdefault(sandbox, ForkServer(sandbox))


def _close() -> None:
    for server in list(_fork_servers.values()):
        server.close()


def _forget() -> None:
    for server in list(_fork_servers.values()):
        server.forget()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
