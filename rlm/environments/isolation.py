"""How far local REPLs are kept from this machine: the levels, their settings, and what this machine can do."""

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
PROCESSES = 256
_LEAST_SCRATCH = 1 << 20
_LEAST_PROCESSES = 8
_UNSHOWN = ("/proc", "/sys", "/dev")
_SCRATCH = ("/tmp", "/var/tmp")
_PARTS = ("bin", "lib", "lib64", "libexec", "pyvenv.cfg")
"""What is visible of a Python installation."""
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
    # pyarrow, and so pandas, would have a thread that no fork has: there could be no checkpoint.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class IsolationWarning(UserWarning):
    """There can be no sandbox here, and code runs at the level "process"."""


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """What a sandbox shows and grants beside what all have in common. Hashable: REPLs with equal ones share a parent."""

    readable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    scratch_bytes: int = SCRATCH_BYTES
    processes: int = PROCESSES

    @classmethod
    def of(
        cls, readable: Sequence[str | Path], hidden: Sequence[str], scratch_bytes: int, processes: int
    ) -> SandboxSettings:
        """
        Raises:
            ConfigError: one of them does not fit.
        """
        for name, given in (("readable", readable), ("hidden", hidden)):
            if isinstance(given, str | bytes | Path):
                raise ConfigError(f"{name} is a list, not {given!r} alone")
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
        """What `worker.sandbox.Sandbox` takes."""
        return {
            "visible": [*_python(), *self.readable],
            "hidden": hidden_paths(_visible_package_folders(), self.hidden),
            "scratch_bytes": self.scratch_bytes,
            "processes": self.processes,
            "count": False,
        }


def _readable(given: object) -> str:
    if not isinstance(given, str | Path):
        raise ConfigError(f"readable: a path is a str or a Path, not {given!r}")
    path = os.path.abspath(Path(given).expanduser())  # noqa: PTH100 (links stay)
    if not os.access(path, os.R_OK):
        raise ConfigError(f"readable: {path} does not exist, or may not be read")
    if _takes_away(path):
        raise ConfigError(f"readable: {path} would take the sandbox away, or its own {path}; name less")
    return path


def _takes_away(path: str) -> bool:
    """Whether to show a path would leave nothing of a sandbox."""
    real = str(Path(path).resolve())
    return real in ("/", *_SCRATCH) or path in _SCRATCH or any(_within(real, folder) for folder in _UNSHOWN)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def package_folders() -> list[str]:
    """The folders of installed packages from which code in a REPL can import."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]


def _visible_package_folders() -> list[str]:
    """These, and what else of the kind a sandbox shows: those of the Python beneath a virtual environment, the system's."""
    prefixes = {sys.prefix, sys.base_prefix, sys.base_exec_prefix, "/usr", "/usr/local"}
    others = [
        folder for prefix in sorted(prefixes) for folder in Path(prefix).glob("lib*/python3*/*-packages")
    ]
    return sorted({os.path.realpath(folder) for folder in [*package_folders(), *map(str, others)]})


def _python() -> list[str]:
    """Where this Python is."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    paths = [f"{prefix}/{part}" for prefix in sorted(prefixes) for part in _PARTS]
    paths += [_executable(), *package_folders()]
    paths += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return [path for path in [*paths, *_libraries()] if path]


def _executable() -> str:
    """This Python. It may have been started as ../bin/python."""
    return os.path.abspath(sys.executable)  # noqa: PTH100 (links stay)


def _libraries() -> list[str]:
    """The folders of `LD_LIBRARY_PATH`, which somebody may have set without a thought of what else is in them."""
    home = os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111 (there may be none)
    paths = [os.path.normpath(path) for path in os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return [
        path
        for path in paths
        if path.startswith("/")
        and os.access(path, os.R_OK)
        and not _takes_away(path)
        and not _within(home, str(Path(path).resolve()))
    ]


def variables() -> dict[str, str]:
    """The environment variables that go over."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    kept.setdefault("LANG", "C.UTF-8")
    return {**kept, **_SET_VARIABLES}


def worker_command(call: str, *arguments: str) -> list[str]:
    """A fresh interpreter that calls a function of `rlm.repl.worker` with arguments of text.

    Args:
        call: module and function, "control.supervisor:main".
    """
    module, _, function = call.partition(":")
    boot = f"import sys; sys.path.append(sys.argv[1]); from worker.{module} import {function}; {function}(*sys.argv[2:])"
    folder = str(Path(__file__).parent.parent / "repl")
    return [_executable(), "-S", "-s", "-P", "-X", "utf8", "-c", boot, folder, *arguments]


@dataclass(frozen=True, slots=True)
class Probe:
    """What this machine can do to isolate a REPL."""

    level: Literal["sandbox", "process"] | None
    """The level that `isolation="sandbox"` gets; None where there can be no local REPL at all."""
    reason: str | None
    """Why that is not "sandbox"."""
    kernel: str
    features: dict[str, bool | int | str] = field(default_factory=dict)
    """What the kernel offers, by name. What a sandbox needs: "user namespaces", "mount namespaces", "process namespaces",
    "network namespaces", "IPC namespaces", "UTS namespaces", "seccomp" (each True or False). What it uses if it is there:
    "Landlock" (its version; 0: none), "own /proc" (True or False), "process limit" ("kernel"; "count": the parent counts
    processes some times a second and ends who has too many; or "none")."""


@cache
def probe() -> Probe:
    """Finds out, once, by making a sandbox in a process of its own and looking around in it. Takes some 50 ms."""
    system = os.uname() if hasattr(os, "uname") else None
    kernel = f"{system.sysname} {system.release} {system.machine}" if system is not None else sys.platform
    if sys.platform == "win32":
        return Probe(None, 'local REPLs need Linux or macOS; use environment="docker"', kernel)
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
            said = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return Probe("process", f"it could not be tried: {error}", kernel)
    reason = str(said["reason"]) or None
    return Probe("sandbox" if reason is None else "process", reason, kernel, said["features"])
