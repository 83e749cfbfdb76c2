"""What a worker does before its first cell: limits, seeds."""

from __future__ import annotations

import resource
import sys
import types

from .processes import LINUX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


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
    for which, value in wanted:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        most = value + 1 if which == resource.RLIMIT_CPU and value != hard else value
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
