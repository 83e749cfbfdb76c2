"""The process trees of workers. A process tree is a worker with all processes that it started.

`ProcessTrees` is the interface. `SubreaperTrees` implements it without a sandbox, `NamespaceTrees` in a sandbox.
"""

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

_COUNT_INTERVAL = 50
"""Milliseconds between two counts of processes."""


class ProcessTrees:
    """The process trees of all workers of a fork server.

    A tree ends in two steps. When its worker ends, the fork server is told, and then either ends the rest of the tree,
    or puts a checkpoint in the place of the worker. When the rest has ended, the fork server is told again.

    The methods up to `end_all` run in the fork server. The methods from `set_up_worker` on run in a worker or a
    checkpoint.

    Args:
        on_worker_ended: called when a worker has ended, with its process id and its status as `os.waitpid` gives it.
        on_tree_ended: called when nothing is left of a tree, with the process id of its worker.
    """

    def __init__(
        self, on_worker_ended: Callable[[int, int], None], on_tree_ended: Callable[[int], None]
    ) -> None:
        self._on_worker_ended, self._on_tree_ended = on_worker_ended, on_tree_ended

    @property
    def count_interval(self) -> int | None:
        """Milliseconds between two calls of `kill_crowded`. None: it need not be called."""
        return None

    def fork(self, work: Callable[[], None]) -> int:
        """Forks a worker.

        Args:
            work: runs in the worker. It must not return.

        Returns:
            The worker's process id. It becomes the id of the worker's process group when the worker makes one.

        Raises:
            OSError: no process can be forked.
        """
        raise NotImplementedError

    def roots(self, worker: int) -> tuple[int, ...]:
        """The ids of the processes that, with their descendants, are the tree of a worker."""
        raise NotImplementedError

    def kill_crowded(self) -> list[int]:
        """Kills the workers whose trees have too many processes, where the kernel does not limit their number.

        Returns:
            The process ids of these workers.
        """
        return []

    def kill(self, worker: int) -> None:
        """Kills a worker. `on_worker_ended` follows."""
        processes.kill(worker, _signal.SIGKILL)

    def reap(self) -> None:
        """Reaps all children that have ended, and calls `on_worker_ended` and `on_tree_ended` for them."""
        raise NotImplementedError

    def kill_leftovers(self, worker: int) -> None:
        """Kills the rest of the tree of a worker that has ended, except its checkpoint.

        Called after the checkpoint has called `kill_what_only_a_checkpoint_finds`.
        """
        raise NotImplementedError

    def end(self, worker: int) -> None:
        """Ends the rest of the tree of a worker that has ended. `on_tree_ended` follows."""
        raise NotImplementedError

    def replace_worker(self, worker: int, checkpoint: int, pidfd: int) -> None:
        """Makes a checkpoint the worker of its tree, in place of a worker that has ended.

        Args:
            worker: the process id of the worker that has ended.
            checkpoint: the process id of the checkpoint.
            pidfd: a pidfd of the checkpoint, which this method takes over.
        """
        raise NotImplementedError

    def end_all(self) -> None:
        """Ends all trees, when the fork server ends."""
        raise NotImplementedError

    def set_up_worker(self) -> None:
        """Called first in a new worker. Makes sure that the worker's tree can be found and ended."""
        raise NotImplementedError

    def pass_on_orphans(self, on: bool) -> None:
        """Called in a worker. Sets whether its orphaned descendants become children of the worker's parent.

        A checkpoint needs this: it must be a child of a process that outlives the worker.
        """
        raise NotImplementedError

    def kill_what_only_a_checkpoint_finds(self) -> None:
        """Called in a checkpoint whose worker has ended. Kills the worker's leftovers that the fork server cannot find."""
        raise NotImplementedError

    def set_up_resumed(self) -> None:
        """Called in a checkpoint that becomes the worker. Does what `set_up_worker` does in a new worker."""
        raise NotImplementedError


class SubreaperTrees(ProcessTrees):
    """Workers that are children of the fork server.

    Each worker is the subreaper of its descendants: an orphan among them becomes a child of the worker. When the worker
    ends, its children become children of the fork server, which is a subreaper too. So a child of the fork server that
    is neither a running worker nor a checkpoint is a leftover.

    Args:
        on_worker_ended, on_tree_ended: see `ProcessTrees`.
        checkpoints: returns the process ids of all checkpoints, which are children of the fork server, but no leftovers.
    """

    def __init__(
        self,
        on_worker_ended: Callable[[int, int], None],
        on_tree_ended: Callable[[int], None],
        checkpoints: Callable[[], Iterable[int]],
    ) -> None:
        super().__init__(on_worker_ended, on_tree_ended)
        processes.become_subreaper()
        self._fork_server = os.getpid()
        self._checkpoints = checkpoints
        self._running: set[int] = set()
        """The process ids of the workers that run."""

    def fork(self, work: Callable[[], None]) -> int:
        pid = os.fork()
        if pid == 0:
            work()
        self._running.add(pid)
        return pid

    def roots(self, worker: int) -> tuple[int, ...]:
        return (worker,)

    def reap(self) -> None:
        self._report(processes.reap())

    def _report(self, ended: dict[int, int]) -> None:
        for pid, status in ended.items():
            if pid in self._running:
                self._running.discard(pid)
                self._on_worker_ended(pid, status)

    def kill_leftovers(self, worker: int) -> None:
        spare = [*self._running, *self._checkpoints()]
        self._report(processes.end_children(spare, [worker], patience=1.0))

    def end(self, worker: int) -> None:
        self.kill_leftovers(worker)
        self._on_tree_ended(worker)

    def replace_worker(self, worker: int, checkpoint: int, pidfd: int) -> None:
        os.close(pidfd)  # not needed: the checkpoint is a child, so `reap` finds its end
        self._running.add(checkpoint)

    def end_all(self) -> None:
        processes.end_children(known=self._running)

    def set_up_worker(self) -> None:
        go_first()
        processes.become_subreaper()
        processes.die_with_parent(self._fork_server, _signal.SIGKILL)

    def pass_on_orphans(self, on: bool) -> None:
        # While `on`, every orphan becomes a child of the fork server, not only the checkpoint. The fork server kills the
        # others when the next worker ends.
        processes.become_subreaper(not on)

    def kill_what_only_a_checkpoint_finds(self) -> None:
        """Nothing to do: without a sandbox the fork server finds all leftovers itself."""

    def set_up_resumed(self) -> None:
        self.set_up_worker()


class NamespaceTrees(ProcessTrees):
    """Workers in a sandbox, each in a pid namespace of its own.

    The first process of the namespace does nothing. It is the parent of all orphans in the namespace, and a child of the
    fork server, as the worker is. When it ends, the kernel kills everything in the namespace, and reports its end to the
    fork server only when nothing is left there.

    Args:
        on_worker_ended, on_tree_ended: see `ProcessTrees`.
        watch: sets the function that is called when a descriptor becomes readable. None: no function any more.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        on_worker_ended: Callable[[int, int], None],
        on_tree_ended: Callable[[int], None],
        watch: Callable[[int, Callable[[], None] | None], None],
    ) -> None:
        super().__init__(on_worker_ended, on_tree_ended)
        self._sandbox, self._watch = sandbox, watch
        self._first_of: dict[int, int] = {}
        """The first process of each worker's namespace, by the process id of the worker."""
        self._worker_of: dict[int, int] = {}
        """The worker in each namespace, by the id of the first process."""
        self._most_processes = sandbox.most_processes_to_count
        self._machine_threads, self._counted_at = 0, 0.0
        """At the last count: the threads of the whole machine, and the time."""

    @property
    def count_interval(self) -> int | None:
        return _COUNT_INTERVAL if self._most_processes is not None else None

    def fork(self, work: Callable[[], None]) -> int:
        first, worker = self._sandbox.fork(work)
        self._first_of[worker], self._worker_of[first] = first, worker
        return worker

    def roots(self, worker: int) -> tuple[int, ...]:
        return worker, self._first_of[worker]

    def kill_crowded(self) -> list[int]:
        if self._most_processes is None:
            return []
        # The number of threads of the machine is cheap to read. The trees are counted when it has grown by half of what
        # one tree may have, and every second.
        now, machine_threads = time.monotonic(), processes.threads_of_all()
        grown = machine_threads >= self._machine_threads + self._most_processes // 2
        if not grown and now < self._counted_at + 1.0:
            return []
        self._machine_threads, self._counted_at = machine_threads, now
        families = processes.families([*self._first_of, *self._worker_of])
        crowded = [
            worker
            for worker in self._first_of
            if sum(member.threads for root in self.roots(worker) for member in families[root])
            > self._most_processes + 2  # the first process and a checkpoint are not the code's
        ]
        for worker in crowded:
            self.kill(worker)
        return crowded

    def reap(self) -> None:
        for pid, status in processes.reap().items():
            worker = self._worker_of.pop(pid, None)
            if worker is not None:  # a first process: its namespace is empty now
                del self._first_of[worker]
                self._on_tree_ended(worker)
            elif pid in self._first_of:
                self._on_worker_ended(pid, status)

    def kill_leftovers(self, worker: int) -> None:
        """Nothing to do: the checkpoint has killed everything else in its namespace."""

    def end(self, worker: int) -> None:
        processes.kill(self._first_of[worker], _signal.SIGKILL)

    def replace_worker(self, worker: int, checkpoint: int, pidfd: int) -> None:
        first = self._first_of.pop(worker)
        self._first_of[checkpoint], self._worker_of[first] = first, checkpoint

        # The checkpoint is a child of the first process, so `reap` does not find its end. The pidfd reports it.
        def on_end() -> None:
            self._watch(pidfd, None)
            status = syscalls.exit_status(pidfd)
            os.close(pidfd)
            if checkpoint in self._first_of:
                self._on_worker_ended(checkpoint, status)

        self._watch(pidfd, on_end)

    def end_all(self) -> None:
        """Nothing to do: the fork server is the first process of the namespace around all these namespaces. When it
        ends, the kernel ends everything in it."""

    def set_up_worker(self) -> None:
        """Locks the worker up. When the fork server dies, the kernel kills its namespace with all namespaces below."""
        self._sandbox.lock_worker()

    def pass_on_orphans(self, on: bool) -> None:
        """Nothing to do: orphans always become children of the first process of the namespace."""

    def kill_what_only_a_checkpoint_finds(self) -> None:
        """Kills everything else in the namespace. The kernel spares the first process."""
        if os.getppid() != 1:
            os._exit(70)  # this is not the namespace of one worker, so the signal would reach other processes
        try:
            while True:  # until nothing is left that could fork
                os.kill(-1, _signal.SIGKILL)
                time.sleep(0.0002)
        except ProcessLookupError:
            pass

    def set_up_resumed(self) -> None:
        """Nothing to do: a checkpoint inherited the mounts, rules and filter of its worker."""
