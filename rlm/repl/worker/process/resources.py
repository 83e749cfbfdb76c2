"""Resource limits and seeds of a worker."""

from __future__ import annotations

import mmap
import os
import resource
import sys
import types

from .processes import LINUX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGNALS = 256
"""Signals and timers that may be pending. The kernel has some thousands for all processes of a user, the host included."""
_RESERVE = 8 << 20
"""Bytes that are held back during a cell: enough for Python to report a MemoryError, and to run a cell that frees memory."""


def hold_memory() -> Any:
    """Holds memory back until the result is dropped. If no memory is left, it raises the memory limit a little, a few times.

    Returns:
        The memory; None if no memory is left and the limit cannot be raised.
    """
    while True:
        try:
            return mmap.mmap(-1, _RESERVE, mmap.MAP_PRIVATE)
        except OSError:
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if soft == hard:
                return None  # if the worker then runs out of memory and dies, the supervisor reports it
            resource.setrlimit(resource.RLIMIT_DATA, (min(soft + _RESERVE, hard), hard))


def go_first() -> None:
    """Makes this process the first one that the kernel kills when the machine runs out of memory, rather than the host."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    except OSError:
        pass  # no /proc, or it is read-only


def set_limits(limits: dict[str, int]) -> None:
    """Sets the resource limits of this process.

    Args:
        limits: "memory_bytes", "cpu_seconds", "file_bytes", "open_files".
    """
    memory = limits["memory_bytes"]
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),  # the kernel sends SIGXCPU, and SIGKILL a second later
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        # RLIMIT_DATA limits what is used. Address space gets room to spare: threads reserve some that they never touch.
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_AS, memory + (16 << 30)),
    ]
    if LINUX:
        wanted.append((resource.RLIMIT_SIGPENDING, _SIGNALS))
    for which, value in wanted:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        most = value
        if which == resource.RLIMIT_CPU and value != hard:
            most += 1
        elif which == resource.RLIMIT_DATA and hard == resource.RLIM_INFINITY:
            most += 8 * _RESERVE
        try:
            resource.setrlimit(which, (value, most))
        except (ValueError, OSError):
            if LINUX:
                raise


def seed_random(seed: int) -> None:
    """Seeds `random` now, and numpy when it is imported."""
    import random

    random.seed(seed)

    class NumpySeeder:
        """Seeds numpy when it is imported."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name != "numpy":
                return None
            sys.meta_path.remove(self)
            import importlib.util

            spec = importlib.util.find_spec(name)
            if spec is not None and spec.loader is not None:
                execute = spec.loader.exec_module

                def exec_module(module: types.ModuleType) -> None:
                    execute(module)
                    module.random.seed(seed & 0xFFFFFFFF)

                spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, NumpySeeder())
