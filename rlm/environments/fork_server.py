"""The host's handles on warm parents, the processes that local REPLs are forked from. One for each isolation and its
settings, started at the first use and again if it is gone."""

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlm.environments.isolation import SandboxSettings, package_folders, variables, worker_command
from rlm.errors import REPLError

_LENGTH = struct.Struct(">I")
_CROWDED = (errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What says that this machine has no room for one more, and nothing of who was asked."""
_PATIENCE = 30.0
"""Seconds that a supervisor may take to start on a machine that has better things to do."""


class NoSandboxError(REPLError):
    """There can be no sandbox, for the reason that the message is."""


class WarmParent:
    """Starts supervisors. All methods may be called from any thread.

    Args:
        sandbox: the settings of the sandbox that REPLs are to live in; None: in none.
    """

    def __init__(self, sandbox: SandboxSettings | None) -> None:
        self._sandbox = sandbox
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._refusal: str | None = None
        self._folder = Path()

    @property
    def running(self) -> bool:
        """Whether `start` is quick now."""
        process = self._process
        return self._control is not None and process is not None and process.returncode is None

    def start(self, fds: Sequence[int], settings: Mapping[str, int]) -> None:
        """Starts a REPL.

        Args:
            fds: its supervisor's stream, its worker's, and files with the encoded contexts. Copies go over; these stay
                with the caller.
            settings: as `limits.of_all` makes them.

        Raises:
            NoSandboxError: this machine allows none.
            REPLError: there can be no such process.
        """
        self._send({"settings": settings, "checkpoint": None}, fds)

    def resume(self, fds: Sequence[int], settings: Mapping[str, int], checkpoint: int) -> None:
        """Has a checkpoint go on as the worker of its REPL; if it is gone, the supervisor's stream says so.

        Args:
            fds: the supervisor's stream, and the worker's. See `start`.
            checkpoint: its name.

        Raises:
            REPLError: see `start`.
        """
        self._send({"settings": settings, "checkpoint": checkpoint}, fds)

    def kill(self) -> None:
        """Kills the supervisor, the warm parent and so all workers: somebody stopped one of them."""
        with self._lock:
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the warm parent and all REPLs that it started. Used again, it starts anew."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked child of the host: leaves the warm parent to its owner."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # not our child, so not ours to wait for
        self._process = self._control = None

    def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        data = _packed(message)
        with self._lock:
            for attempt in (1, 2):
                if self._control is None or self._process is None or self._process.poll() is not None:
                    self._end()
                    self._launch()
                assert self._control is not None
                try:
                    sent = _send_fds(self._control, data, fds)
                    self._control.sendall(data[sent:])
                    return
                except OSError as error:
                    if error.errno in _CROWDED:
                        raise REPLError(f"the parent process of REPLs cannot be asked: {error}") from error
                    self._end()
                    if attempt == 2:
                        raise REPLError(f"the parent process of REPLs does not answer: {error}") from error

    def _launch(self) -> None:
        if self._refusal is not None:
            raise NoSandboxError(self._refusal)
        ours, theirs = socket.socketpair()
        ours.settimeout(_PATIENCE)
        self._folder = folder = Path(tempfile.gettempdir(), f"rlm-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            self._process = subprocess.Popen(
                worker_command("control.supervisor:main", str(theirs.fileno()), str(os.getpid())),
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
            raise REPLError(f"the parent process of REPLs cannot be started: {error}") from error
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
                raise REPLError(f"the parent process of REPLs did not start: {said['failure']}")
        except BaseException as error:
            ours.close()
            self._end()
            if isinstance(error, OSError):
                raise REPLError(f"the parent process of REPLs did not start: {error}") from error
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
            if self._folder.exists():  # it was killed
                shutil.rmtree(self._folder, ignore_errors=True)


def _send_fds(stream: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    """`socket.send_fds`. The kernel counts the descriptors of a user that are on their way, those too that some code in a REPL
    sends to itself, and compares that with the sender's limit: of which that code has less than we can have."""
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
            raise ConnectionError("it ended")
        data += piece
    return data


_parents: dict[SandboxSettings | None, WarmParent] = {}


def warm_parent(sandbox: SandboxSettings | None = None) -> WarmParent:
    """The warm parent of this process for REPLs in such a sandbox, or in none."""
    return _parents.setdefault(sandbox, WarmParent(sandbox))


def _close() -> None:
    for parent in list(_parents.values()):
        parent.close()


def _forget() -> None:
    for parent in list(_parents.values()):
        parent.forget()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
