"""How much memory the processes of each REPL have together. The kernel limits that of one process only, where we may make no
control groups.

To weigh them all takes a look at each process of the machine. That is done at once when memory has become scarcer by an amount
that matters, and every few seconds, as others may have freed what one takes; but for a small part of the time only.
"""

from __future__ import annotations

import os
import time

from ..process import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TICK = 0.1
"""Seconds between two looks."""
_PATIENCE = 2.0
"""Seconds after which they are weighed, whatever memory there is."""
_REST = 20
"""Weighing takes at most one part in so many of the time."""


class Scales:
    """Finds REPLs that have too much."""

    def __init__(self) -> None:
        try:
            self._meminfo = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # macOS, or a container that shows us nothing
            self._meminfo = -1
        self._most_free = 0
        """Bytes that were free at most since they were last weighed."""
        self._next = self._weighed = self._rested = 0.0

    @property
    def works(self) -> bool:
        """Whether there is something to look at."""
        return self._meminfo >= 0

    def is_due(self) -> bool:
        """Whether it is time for another look."""
        return time.monotonic() >= self._next

    def look(self, limits: Mapping[int, int], roots: Callable[[int], Sequence[int]]) -> list[int]:
        """
        Args:
            limits: bytes that a REPL may have, by the process id of its worker.
            roots: processes of a worker's REPL, whose descendants are its too.

        Returns:
            The workers of REPLs that have more.
        """
        now = time.monotonic()
        self._next = now + TICK
        if not self.works or not limits:
            return []
        free = self._free()
        self._most_free = max(self._most_free, free)
        scarcer = self._most_free - free >= min(limits.values()) // 4
        if now < self._rested or not (scarcer or now >= self._weighed + _PATIENCE):
            return []
        self._most_free = free
        families = processes.families(root for worker in limits for root in roots(worker))
        heavy = []
        for worker, most in limits.items():
            members = [member for root in roots(worker) for member in families[root]]
            # What is resident counts pages that several share several times, but is known already.
            resident = sum(member.resident for member in members)
            if resident > most and sum(_share(member.pid) for member in members) > most:
                heavy.append(worker)
        ended = time.monotonic()
        self._weighed, self._rested = ended, ended + _REST * (ended - now)
        return heavy

    def _free(self) -> int:
        """Bytes that programs could have."""
        for line in os.pread(self._meminfo, 4096, 0).split(b"\n"):
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) << 10
        return 0


def _share(pid: int) -> int:
    """Bytes of memory that a process has, without what is in files; of what it shares with others, its part."""
    try:
        fd = os.open(f"/proc/{pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            lines = os.read(fd, 4096).split(b"\n")
        finally:
            os.close(fd)
    except OSError:
        return 0  # it ended while we looked
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")))
