"""Timing and memory, for every benchmark the same way."""

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
    """Repeated measurements of one thing, in milliseconds or megabytes."""

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
class Row:
    """One line of the table."""

    name: str
    unit: str
    ours: float
    floor: float | None = None


async def repeat(times: int, *actions: Callable[[], Awaitable[None]]) -> None:
    """Runs the actions in turn, so that what disturbs the machine disturbs all of them alike."""
    for _ in range(times):
        for action in actions:
            await action()


def private_megabytes(pid: int, *, shared: bool = False) -> float:
    """Private memory of all descendants of a process, in MB (USS: what its end would free). Processes that share theirs count
    as one.

    Args:
        shared: add what several share, once in all (PSS): what a process and its fork have both not changed.
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
