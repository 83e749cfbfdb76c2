"""What a worker does before its first cell: limits, seeds."""

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
"""Signals that may wait, and timers: the kernel has so many thousand for all that a user runs, us and the host included."""
_RESERVE = 8 << 20
"""Bytes that Python can do without, and after that has enough to tell what happened, and to run code that frees some."""


def hold_memory() -> Any:
    """Memory that nobody uses, so that there is some when all other has been used up, once the result is dropped. If there is
    none left, the limit is raised a little, a few times."""
    while True:
        try:
            return mmap.mmap(-1, _RESERVE, mmap.MAP_PRIVATE)
        except OSError:
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            if soft == hard:
                return None  # what comes of that is seen from outside
            resource.setrlimit(resource.RLIMIT_DATA, (min(soft + _RESERVE, hard), hard))


def go_first() -> None:
    """Has the kernel end us, and not the host, when the machine has no memory left. Needs a `/proc` that can be written to."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    except OSError:
        pass  # there is none


def set_limits(limits: dict[str, int]) -> None:
    memory = limits["memory_bytes"]
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),  # sends SIGXCPU, and SIGKILL a second later
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        # Address space is also what threads reserve and never touch, so it gets room to spare; data is what is used.
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
