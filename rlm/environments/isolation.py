"""The levels of isolation of local REPLs, the settings of the sandbox, and a probe of what this machine offers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlm.environments.hidden_packages import hidden_paths
from rlm.errors import ConfigError

Isolation = Literal["sandbox", "sandbox!", "process", "none"]

SCRATCH_BYTES = 1 << 30
"""The default of `scratch_bytes`."""
PROCESSES = 256
"""The default of `processes`."""
_LEAST_SCRATCH = 1 << 20
_LEAST_PROCESSES = 8
_NEVER_SHOWN = ("/proc", "/sys", "/dev")
_SCRATCH = ("/tmp", "/var/tmp")
_PARTS = ("bin", "lib", "lib64", "libexec", "pyvenv.cfg")
"""The parts of a Python installation that a sandbox shows."""
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
_SET_VARIABLES = {
    "PYTHONHASHSEED": "0",
    # A background thread of pyarrow, which pandas uses, would prevent checkpoints: a fork does not have the thread.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class IsolationWarning(UserWarning):
    """This machine allows no sandbox, so code runs at the level "process"."""


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """The settings of a sandbox: what it shows and hides, and its limits. REPLs with equal settings share a fork server."""

    readable: tuple[str, ...] = ()
    """Absolute paths of further directories and files that code can read."""
    hidden: tuple[str, ...] = ()
    """Further installed packages that code can neither import nor read, by the name of the distribution or of the module."""
    scratch_bytes: int = SCRATCH_BYTES
    """Bytes that the files of a REPL may take. They are in memory."""
    processes: int = PROCESSES
    """Processes and threads that a REPL may have at once."""

    @classmethod
    def of(
        cls, readable: Sequence[str | Path], hidden: Sequence[str], scratch_bytes: int, processes: int
    ) -> SandboxSettings:
        """Checks settings as a user gives them, and makes paths absolute.

        Raises:
            ConfigError: a setting has a wrong type or value, a path cannot be read or would undo the sandbox, or a package
                is not installed.
        """
        for name, given in (("readable", readable), ("hidden", hidden)):
            if isinstance(given, str | bytes | Path):
                raise ConfigError(f"{name} must be a list, not {given!r} alone")
        for name, number, least in (
            ("scratch_bytes", scratch_bytes, _LEAST_SCRATCH),
            ("processes", processes, _LEAST_PROCESSES),
        ):
            if type(number) is not int or number < least:
                raise ConfigError(f"{name} must be a whole number, {least:,} or more, not {number!r}")
        if hidden:
            hidden_paths(_visible_package_folders(), hidden)
        return cls(
            tuple(dict.fromkeys(map(_readable, readable))),
            tuple(dict.fromkeys(hidden)),
            scratch_bytes,
            processes,
        )

    def plan(self) -> dict[str, Any]:
        """The settings as `worker.sandbox.sandbox.Sandbox` takes them."""
        return {
            "visible": [*_python(), *self.readable],
            "hidden": hidden_paths(_visible_package_folders(), self.hidden),
            "scratch_bytes": self.scratch_bytes,
            "processes": self.processes,
            "count": False,
        }


def _readable(given: object) -> str:
    if not isinstance(given, str | Path):
        raise ConfigError(f"readable: a path must be a str or a Path, not {given!r}")
    path = os.path.abspath(Path(given).expanduser())  # noqa: PTH100 (links stay)
    if not os.access(path, os.R_OK):
        raise ConfigError(
            f"readable: {path} does not exist, or this user cannot read it: name a path that exists"
        )
    if _undoes_sandbox(path):
        raise ConfigError(
            f"readable: {path} would undo the sandbox, or cover its own {path}; name a directory below it"
        )
    return path


def _undoes_sandbox(path: str) -> bool:
    """Whether this path, if shown, would expose what every sandbox must hide."""
    real = str(Path(path).resolve())
    return (
        real in ("/", *_SCRATCH) or path in _SCRATCH or any(_within(real, folder) for folder in _NEVER_SHOWN)
    )


def _within(path: str, folder: str) -> bool:
    """Whether a path is a folder, or in it."""
    return path == folder or path.startswith(folder + "/")


def package_folders() -> list[str]:
    """The folders of installed packages from which code in a REPL can import."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


def _visible_package_folders() -> list[str]:
    """All folders of installed packages that a sandbox shows: also those of the system, and of the Python that a virtual
    environment is based on."""
    prefixes = {sys.prefix, sys.base_prefix, sys.base_exec_prefix, "/usr", "/usr/local"}
    others = [
        folder for prefix in sorted(prefixes) for folder in Path(prefix).glob("lib*/python3*/*-packages")
    ]
    return sorted({os.path.realpath(folder) for folder in [*package_folders(), *map(str, others)]})


def _python() -> list[str]:
    """The paths that this Python needs."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    paths = [f"{prefix}/{part}" for prefix in sorted(prefixes) for part in _PARTS]
    paths += [_executable(), *package_folders()]
    paths += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return [path for path in [*paths, *_libraries()] if path]


def _executable() -> str:
    """The absolute path of this Python, which may have been started by a relative one."""
    return os.path.abspath(sys.executable)  # noqa: PTH100 (links stay)


def _libraries() -> list[str]:
    """The folders of `LD_LIBRARY_PATH`, without those that contain the home directory or would undo
    the sandbox."""
    home = os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111 (there may be none)
    paths = [os.path.normpath(path) for path in os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return [
        path
        for path in paths
        if path.startswith("/")
        and os.access(path, os.R_OK)
        and not _undoes_sandbox(path)
        and not _within(home, str(Path(path).resolve()))
    ]


def variables() -> dict[str, str]:
    """The environment variables of the processes of REPLs. All others of the host are left out."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    kept.setdefault("LANG", "C.UTF-8")
    return {**kept, **_SET_VARIABLES}


def worker_command(call: str, *arguments: str) -> list[str]:
    """The command line of a fresh interpreter that calls a function of `rlm.repl.worker`.

    Args:
        call: module and function, such as "control.local_supervisor:main".
        arguments: the arguments of the function, all text.
    """
    module, _, function = call.partition(":")
    boot = f"import sys; sys.path.append(sys.argv[1]); from worker.{module} import {function}; {function}(*sys.argv[2:])"
    folder = str(Path(__file__).parent.parent / "repl")
    return [_executable(), "-S", "-s", "-P", "-X", "utf8", "-c", boot, folder, *arguments]


@dataclass(frozen=True, slots=True)
class Probe:
    """What this machine offers to isolate a REPL."""

    level: Literal["sandbox", "process"] | None
    """The level of isolation that `isolation="sandbox"` gets. None: there can be no local REPL."""
    reason: str | None
    """Why the level is not "sandbox". None: the level is "sandbox"."""
    kernel: str
    """Name, release and machine, as `uname` has them."""
    features: dict[str, bool | int | str] = field(default_factory=dict)
    """What the kernel offers, by name.

    A sandbox needs (True or False): "user namespaces", "mount namespaces", "process namespaces", "network namespaces", "IPC
    namespaces", "UTS namespaces", "seccomp".

    A sandbox uses, where the kernel offers it: "Landlock": its version; 0: none. "own /proc": True or False. "process limit":
    "kernel", or "count": the fork server counts processes 20 times a second and kills a REPL that has too many, or "none"."""


@cache
def probe() -> Probe:
    """Finds out what this machine offers, by making a sandbox in a process of its own. The first call takes about 50 ms."""
    system = os.uname() if hasattr(os, "uname") else None
    kernel = f"{system.sysname} {system.release} {system.machine}" if system is not None else sys.platform
    if sys.platform == "win32":
        return Probe(
            None,
            'local REPLs need Linux or macOS: run the code in a container with environment="program"',
            kernel,
        )
    if sys.platform != "linux":
        return Probe("process", "the sandbox needs Linux", kernel)
    with tempfile.TemporaryDirectory(prefix="rlm-probe-") as folder:
        try:
            done = subprocess.run(
                worker_command("sandbox.probe:main", json.dumps(SandboxSettings().plan()), folder),
                env=variables(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
                cwd="/",
            )
            found = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return Probe("process", f"the sandbox could not be tried: {error}", kernel)
    reason = str(found["reason"]) or None
    return Probe("sandbox" if reason is None else "process", reason, kernel, found["features"])
