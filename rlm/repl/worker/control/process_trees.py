"""The workers of a warm parent, each with all the processes that it started."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import time

from ..process import processes
from ..process.resources import go_first
from ..sandbox import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..sandbox.sandbox import Sandbox


class Trees:
    """Workers beside each other. Each is the reaper of its own descendants, so that what is left when it ends is ours.

    Args:
        ended: is told of a worker that has ended: its process id and its status, as waitpid gives it.
        gone: is told of a worker of whose tree nothing is left.
        spared: ids of processes of ours that are to be left alone, whatever worker ends.
    """

    def __init__(
        self,
        ended: Callable[[int, int], None],
        gone: Callable[[int], None],
        spared: Callable[[], Iterable[int]],
    ) -> None:
        processes.become_subreaper()
        self._parent = os.getpid()
        self._ended, self._gone, self._spared = ended, gone, spared
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

    patience = None

    def roots(self, worker: int) -> tuple[int, ...]:
        """Processes whose descendants are all of a tree."""
        return (worker,)

    def look(self) -> list[int]:
        """Nothing is counted."""
        return []

    def kill(self, worker: int) -> None:
        """Kills a worker; `ended` is told."""
        processes.kill(worker, _signal.SIGKILL)

    def reap(self) -> None:
        """Buries what ended."""
        self._bury(processes.reap())

    def _bury(self, ended: dict[int, int]) -> None:
        for pid, status in ended.items():
            if pid in self._living:
                self._living.discard(pid)
                self._ended(pid, status)

    def clear(self, worker: int) -> None:
        """Ends what is left of the tree of a worker that has ended."""
        spare = [*self._living, *self._spared()]
        self._bury(processes.end_children(spare, [worker], patience=1.0))

    def end(self, worker: int) -> None:
        """The same; and then `gone` is told."""
        self.clear(worker)
        self._gone(worker)

    def replace(self, worker: int, other: int, pidfd: int) -> None:
        """A process that is our child already takes the place of a worker that has ended.

        Args:
            pidfd: a descriptor of it, which is taken.
        """
        os.close(pidfd)
        self._living.add(other)

    def end_all(self) -> None:
        processes.end_children(known=self._living)

    # in a worker

    def settle(self) -> None:
        """Before it does anything."""
        go_first()
        processes.become_subreaper()
        processes.die_with_parent(self._parent, _signal.SIGKILL)

    def step_aside(self, aside: bool) -> None:
        """An orphan that it makes is to be ours, and not its own. What its other descendants leave in that moment is so
        too, and lives no longer than the next worker that ends."""
        processes.become_subreaper(not aside)

    def sweep(self) -> None:
        """In the one that is to take its place: there is nothing that we do not find."""

    def rise(self) -> None:
        """In the one that takes its place."""
        self.settle()


_TICK = 50
"""Milliseconds between two looks at how many processes there are."""


class BoxedTrees:
    """Workers in a sandbox, each in a namespace of processes of its own: when its first process ends, all end.

    Args:
        ended, gone: see `Trees`.
        watch: has a function called when a descriptor can be read; None: no more.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        ended: Callable[[int, int], None],
        gone: Callable[[int], None],
        watch: Callable[[int, Callable[[], None] | None], None],
    ) -> None:
        self._sandbox = sandbox
        self._ended, self._gone, self._watch = ended, gone, watch
        self._firsts: dict[int, int] = {}
        """First processes, by worker."""
        self._workers: dict[int, int] = {}
        """And the other way round."""
        self._limit = sandbox.counted
        self._total, self._counted = 0, 0.0
        """Threads of the whole machine when ours were counted last, and the moment."""

    def fork(self, work: Callable[[], None]) -> int:
        """See `Trees.fork`."""
        first, worker = self._sandbox.fork(work)
        self._firsts[worker], self._workers[first] = first, worker
        return worker

    def roots(self, worker: int) -> tuple[int, ...]:
        """See `Trees.roots`. Its orphans are children of the first process."""
        return worker, self._firsts[worker]

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
        families = processes.families([*self._firsts, *self._workers])
        crowded = [
            worker
            for worker in self._firsts
            if sum(member.threads for root in self.roots(worker) for member in families[root])
            > self._limit + 2  # the first process, a checkpoint
        ]
        for worker in crowded:
            self.kill(worker)
        return crowded

    def kill(self, worker: int) -> None:
        """Kills a worker; `ended` is told."""
        processes.kill(worker, _signal.SIGKILL)

    def reap(self) -> None:
        """Buries what ended."""
        for pid, status in processes.reap().items():
            worker = self._workers.pop(pid, None)
            if worker is not None:  # which the kernel says when nobody is left
                del self._firsts[worker]
                self._gone(worker)
            elif pid in self._firsts:
                self._ended(pid, status)

    def clear(self, worker: int) -> None:
        """See `Trees.clear`: `sweep` has done it."""

    def end(self, worker: int) -> None:
        """See `Trees.end`."""
        processes.kill(self._firsts[worker], _signal.SIGKILL)

    def replace(self, worker: int, other: int, pidfd: int) -> None:
        """See `Trees.replace`. It is no child of ours, so we have to be told of its end in another way."""
        first = self._firsts.pop(worker)
        self._firsts[other], self._workers[first] = first, other

        def over() -> None:
            self._watch(pidfd, None)
            status = syscalls.exit_status(pidfd)
            os.close(pidfd)
            if other in self._firsts:
                self._ended(other, status)

        self._watch(pidfd, over)

    def end_all(self) -> None:
        """Nothing to do: we are the first process of a namespace, which is all that they live in."""

    # in a worker

    def settle(self) -> None:
        """See `Trees.settle`. When the warm parent dies, the kernel ends its namespace with all below it."""
        self._sandbox.lock()

    def step_aside(self, aside: bool) -> None:
        """See `Trees.step_aside`. Its orphans belong to the first process of its namespace."""

    def sweep(self) -> None:
        """See `Trees.sweep`. Ends all others in our namespace but the first one, whatever they do meanwhile."""
        if os.getppid() != 1:
            os._exit(70)  # so this is no namespace of ours, and we must not
        try:
            while True:
                os.kill(-1, _signal.SIGKILL)
                time.sleep(0.0002)
        except ProcessLookupError:
            pass  # that was the last one

    def rise(self) -> None:
        """See `Trees.rise`. What it was locked up with is not to be got rid of."""
