"""The workers of a warm parent, each with all the processes that it started."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import time

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .sandbox import Sandbox


class Trees:
    """Workers beside each other. Each is the reaper of its own descendants, so that what is left when it ends is ours."""

    def __init__(self) -> None:
        processes.become_subreaper()
        self._parent = os.getpid()
        self._living: set[int] = set()

    def fork(self, work: Callable[[], None]) -> int:
        """Forks a worker.

        Args:
            work: what it does; does not return.

        Returns:
            Its process id, which is that of its process group as soon as it made one.

        Raises:
            OSError: there can be no more processes.
        """
        pid = os.fork()
        if pid == 0:
            work()
        self._living.add(pid)
        return pid

    def settle(self) -> None:
        """In a worker, before it does anything."""
        processes.become_subreaper()
        processes.die_with_parent(self._parent, _signal.SIGKILL)

    patience = None

    def look(self) -> list[int]:
        """Nothing is counted."""
        return []

    def kill(self, worker: int) -> None:
        """Kills a worker; `reap` ends the rest of its tree."""
        processes.kill(worker, _signal.SIGKILL)

    def reap(self) -> dict[int, int]:
        """Buries what ended.

        Returns:
            The statuses of workers, as waitpid gives them, of whose trees nothing is left.
        """
        ended = processes.reap()
        if not self._living.isdisjoint(ended):
            known = list(ended)
            ended.update(processes.end_children(self._living.difference(ended), known, patience=1.0))
        over = {pid: status for pid, status in ended.items() if pid in self._living}
        self._living.difference_update(over)
        return over

    def end(self) -> None:
        """Ends them all."""
        processes.end_children(known=self._living)


_TICK = 50
"""Milliseconds between two looks at how many processes there are."""


class BoxedTrees:
    """Workers in a sandbox, each in a namespace of processes of its own: when its first process ends, all end."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._firsts: dict[int, int] = {}
        """First processes, by worker."""
        self._workers: dict[int, int] = {}
        """And the other way round."""
        self._statuses: dict[int, int] = {}
        """Of workers that have ended."""
        self._limit = sandbox.counted
        self._total, self._counted = 0, 0.0
        """Threads of the whole machine when ours were counted last, and the moment."""

    def fork(self, work: Callable[[], None]) -> int:
        """See `Trees.fork`."""
        first, worker = self._sandbox.fork(work)
        self._firsts[worker], self._workers[first] = first, worker
        return worker

    def settle(self) -> None:
        """See `Trees.settle`. When the warm parent dies, the kernel ends its namespace with all below it."""
        self._sandbox.lock()

    @property
    def patience(self) -> int | None:
        """Milliseconds after which `look` wants to be called."""
        return _TICK if self._limit is not None else None

    def look(self) -> list[int]:
        """Kills workers that have too many processes, where the kernel does not see to that.

        Returns:
            Those workers.
        """
        if self._limit is None:
            return []
        now, total = time.monotonic(), processes.threads_of_all()
        if total < self._total + self._limit // 2 and now < self._counted + 1.0:
            return []
        self._total, self._counted = total, now
        counts = processes.count_threads([*self._firsts, *self._workers])
        crowded = [
            worker
            for worker, first in self._firsts.items()
            if counts.get(worker, 0) + counts.get(first, 0) > self._limit + 1
        ]
        for worker in crowded:
            self.kill(worker)
        return crowded

    def kill(self, worker: int) -> None:
        """Kills a worker and its tree."""
        processes.kill(self._firsts[worker], _signal.SIGKILL)

    def reap(self) -> dict[int, int]:
        """See `Trees.reap`."""
        over: dict[int, int] = {}
        for pid, status in processes.reap().items():
            worker = self._workers.pop(pid, None)
            if worker is not None:  # which the kernel says when nobody is left, and it has buried the worker
                del self._firsts[worker]
                over[worker] = self._statuses.pop(worker)
            elif pid in self._firsts:
                self._statuses[pid] = status
                self.kill(pid)
        return over

    def end(self) -> None:
        """Nothing to do: we are the first process of a namespace, which is all that they live in."""
