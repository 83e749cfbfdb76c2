"""Timing and memory measurements, shared by all benchmarks."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Samples:
    """Repeated measurements of one figure, in milliseconds or megabytes."""

    values: list[float] = field(default_factory=list)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Adds the wall-clock time of the block, in milliseconds."""
        started = time.perf_counter()
        yield
        self.values.append((time.perf_counter() - started) * 1e3)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line of the table."""

    name: str
    unit: str
    ours: float
    """The figure of this project."""
    floor: float | None = None
    """The figure of the bare floor; None if there is none."""


async def repeat(times: int, *actions: Callable[[], Awaitable[None]]) -> None:
    """Runs the actions in turn, so that other load on the machine affects all of them equally."""
    for _ in range(times):
        for action in actions:
            await action()


def private_megabytes(pid: int, *, shared: bool = False) -> float:
    """Private memory of all descendants of a process in MB (USS: the memory that its end would free). Processes with a shared
    address space count as one.

    Args:
        pid: id of the process.
        shared: add the pages that several processes share, each page once (PSS), such as those that neither a process nor
            its fork has changed.
    """
    known: dict[int, list[int]] = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            info = process.memory_full_info()
            memory = info.pss if shared else info.uss
        except psutil.NoSuchProcess:
            continue
        alike = known.setdefault(memory, [])
        if not any(_share_memory(process.pid, other) for other in alike):
            alike.append(process.pid)
    return sum(memory * len(pids) for memory, pids in known.items()) / 1e6


def _share_memory(pid: int, other: int) -> bool:
    kcmp = 312 if platform.machine() == "x86_64" else 272
    return bool(ctypes.CDLL(None).syscall(kcmp, pid, other, 1, 0, 0) == 0)
