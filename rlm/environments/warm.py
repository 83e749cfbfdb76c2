"""The host's handle on the warm parent, the process that local REPLs are forked from. One per host process, started at
the first use and again if it is gone."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from rlm.errors import REPLError

_BOOT = (
    "import sys, json; sys.path.append(sys.argv[1]); from worker import supervisor;"
    "supervisor.main(int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))"
)
_KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)


class WarmParent:
    """Starts supervisors. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._folder = Path()

    @property
    def running(self) -> bool:
        """Whether `start` is quick now."""
        process = self._process
        return process is not None and process.returncode is None

    def start(self, fds: Sequence[int], max_output: int) -> None:
        """Starts a REPL.

        Args:
            fds: its supervisor's stream, its worker's, and files with the encoded contexts. Copies go over; these stay
                with the caller.
            max_output: characters that the supervisor keeps of what goes down a pipe.

        Raises:
            REPLError: there can be no such process.
        """
        self._send({"max_output": max_output}, fds)

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

    def _send(self, message: dict[str, int], fds: Sequence[int]) -> None:
        body = json.dumps(message).encode()
        data = len(body).to_bytes(4, "big") + body
        with self._lock:
            for attempt in (1, 2):
                if self._control is None or self._process is None or self._process.poll() is not None:
                    self._end()
                    self._launch()
                assert self._control is not None
                try:
                    sent = socket.send_fds(self._control, [data], fds)
                    self._control.sendall(data[sent:])
                    return
                except OSError as error:
                    self._end()
                    if attempt == 2:
                        raise REPLError(f"the parent process of REPLs does not answer: {error}") from error

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(10.0)
        here = str(Path(__file__).parent)
        self._folder = folder = Path(tempfile.gettempdir(), f"rlm-{os.getpid()}-{secrets.token_hex(4)}")
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        settings = {
            "packages": packages,
            "prefix": sys.prefix,
            "exec_prefix": sys.exec_prefix,
            "folder": str(folder),
        }
        variables = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        variables.setdefault("LANG", "C.UTF-8")
        arguments = [here, str(theirs.fileno()), str(os.getpid()), json.dumps(settings)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-P", "-X", "utf8", "-c", _BOOT, *arguments],
                env={**variables, "PYTHONHASHSEED": "0"},
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


shared = WarmParent()
"""The one of this process."""

atexit.register(shared.close)
os.register_at_fork(after_in_child=shared.forget)
