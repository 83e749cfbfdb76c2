"""Finds out what this machine offers for a sandbox, by trying. `rlm.environments.isolation.probe` runs it in a fresh
interpreter."""

from __future__ import annotations

import json
import os
import sys

from ..process import processes
from . import seccomp, syscalls
from .sandbox import fork_into_sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NAMESPACES = {
    "mount namespaces": syscalls.NEW_MOUNTS,
    "process namespaces": syscalls.NEW_PID,
    "network namespaces": syscalls.NEW_NET,
    "IPC namespaces": syscalls.NEW_IPC,
    "UTS namespaces": syscalls.NEW_UTS,
}


def main(settings: str, folder: str) -> None:
    """Prints what `examine` finds, as JSON.

    Args:
        settings: the settings of the sandbox to try, as JSON.
        folder: an empty directory.
    """
    print(json.dumps(examine(json.loads(settings), folder)))


def examine(settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """Tries the kernel's features one by one, and then a whole sandbox.

    Args:
        settings: see `Sandbox`.
        folder: an empty directory.

    Returns:
        "reason": why there can be no sandbox; empty if there can be one. "features": see `isolation.Probe`.
    """
    features: dict[str, Any] = {}
    if processes.libc is not None and syscalls.machine() is not None:
        syscalls.declare_arguments()
        user = syscalls.NEW_USER
        features["user namespaces"] = _succeeds(lambda: syscalls.unshare(user, ""))
        for name, flag in _NAMESPACES.items():
            features[name] = _succeeds(lambda flag=flag: syscalls.unshare(user | flag, ""))  # type: ignore[misc]
        features["seccomp"] = _succeeds(_install_filter)
        features["Landlock"] = syscalls.landlock_version()
    processes.become_subreaper()
    read, write = os.pipe()
    reason = fork_into_sandbox(settings, folder, lambda sandbox: _send(write, sandbox.features))
    os.close(write)
    with open(read, "rb") as stream:  # noqa: PTH123 (a descriptor)
        features.update(json.loads(stream.read() or "{}"))
    processes.end_children()
    return {"reason": reason, "features": features}


def _send(fd: int, features: dict[str, Any]) -> None:
    os.write(fd, json.dumps(features).encode())


def _install_filter() -> None:
    syscalls.set_no_new_privileges()
    syscalls.install_filter(seccomp.program())


def _succeeds(action: Callable[[], None]) -> bool:
    """Tries an action in a process of its own. Returns whether it succeeded."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0
