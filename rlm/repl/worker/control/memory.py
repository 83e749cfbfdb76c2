"""How much memory all processes of a REPL take together. The kernel's resource limits hold for one process each, and a
control group for all of them may need privileges.

A measurement reads `/proc` for each process of the machine. The meter measures when the machine's free memory has shrunk
by a quarter of the smallest limit. It also measures every two seconds: another process may have freed as much as a REPL has
taken. Measurements take at most a twentieth of the time.
"""

from __future__ import annotations

import os
import time

from ..process import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CHECK_INTERVAL = 0.1
"""Seconds between two looks at the free memory of the machine."""
_MEASURE_INTERVAL = 2.0
"""Seconds after which memory is measured even if the free memory has not shrunk."""
_REST_FACTOR = 20
"""After a measurement the meter rests this many times as long as the measurement took."""


class MemoryMeter:
    """Finds REPLs whose processes take more memory than they may have together."""

    def __init__(self) -> None:
        try:
            self._meminfo = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # macOS, or a container without /proc
            self._meminfo = -1
        self._most_free = 0
        """The most free memory of the machine since the last measurement (bytes)."""
        self._next_check = self._measured_at = self._rest_until = 0.0

    @property
    def available(self) -> bool:
        """Whether memory can be measured here."""
        return self._meminfo >= 0

    def is_due(self) -> bool:
        """Whether it is time for the next `find_over_limit`."""
        return time.monotonic() >= self._next_check

    def find_over_limit(self, limits: Mapping[int, int], roots: Callable[[int], Sequence[int]]) -> list[int]:
        """Measures the memory of REPLs, if that is due.

        Args:
            limits: bytes that the processes of a REPL may take together, by the process id of its worker.
            roots: `ProcessTrees.roots`.

        Returns:
            The workers of the REPLs that take more.
        """
        now = time.monotonic()
        self._next_check = now + CHECK_INTERVAL
        if not self.available or not limits:
            return []
        free = self._free()
        self._most_free = max(self._most_free, free)
        shrunk = self._most_free - free >= min(limits.values()) // 4
        if now < self._rest_until or not (shrunk or now >= self._measured_at + _MEASURE_INTERVAL):
            return []
        self._most_free = free
        families = processes.families(root for worker in limits for root in roots(worker))
        over = []
        for worker, most in limits.items():
            members = [member for root in roots(worker) for member in families[root]]
            # The resident size counts a page once for each process that maps it, so it is too high. It is known already.
            # The exact figure is read only if the resident size is over the limit.
            resident = sum(member.resident for member in members)
            if resident > most and sum(_proportional_size(member.pid) for member in members) > most:
                over.append(worker)
        ended = time.monotonic()
        self._measured_at, self._rest_until = ended, ended + _REST_FACTOR * (ended - now)
        return over

    def _free(self) -> int:
        """Bytes of memory that the machine could give to programs."""
        for line in os.pread(self._meminfo, 4096, 0).split(b"\n"):
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) << 10
        return 0


def _proportional_size(pid: int) -> int:
    """The proportional set size of a process in bytes, without pages of files: a page that n processes share counts
    for 1/n."""
    try:
        fd = os.open(f"/proc/{pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            lines = os.read(fd, 4096).split(b"\n")
        finally:
            os.close(fd)
    except OSError:
        return 0  # the process has ended
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith((b"Pss_Anon:", b"Pss_Shmem:")))
