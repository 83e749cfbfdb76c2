"""The worker: the process in which the cells of one REPL run."""

# ruff: noqa: PTH102, PTH103 (no pathlib)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import gc
import mmap
import os
import sys
import types

from .cells import Cells
from .channel import Channel
from .checkpoint import Checkpoints
from .interrupts import Interrupts
from .processes import MOST_FDS, libc, move_high
from .resources import hold_memory, set_limits
from .streams import SHARED, STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .checkpoint import WorkerTree
    from .post import Post


class Worker:
    """The worker's process: descriptors, forks, resource limits, and the loop that serves the host. It is also the
    `cells.Interpreter` of its cells.

    Args:
        stdout, stderr: descriptors of the pipes to the supervisor.
        memory: the memory shared with the supervisor, of `streams.SHARED` bytes.
    """

    def __init__(self, stdout: int, stderr: int, memory: Any) -> None:
        self._maps: list[Any] = []
        self._attach(stdout, stderr, memory)
        self.pid = os.getpid()
        self._reserve: Any = None
        """Memory that is freed when the code has used up all other memory: Python needs some to report that."""

    def _attach(self, stdout: int, stderr: int, memory: Any) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        self._spare = [move_high(fd) for fd in (null, stdout, stderr)]
        os.close(null)
        self._renew_descriptors()
        # Never closed: the code may have closed the descriptor and opened another file with the same number.
        self._maps.append(memory)
        STREAMS.connect(memory, *self._spare[1:])

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that the worker holds besides 0, 1 and 2."""
        return self._spare

    def connect(self, link: int) -> tuple[Channel, Cells]:
        """Takes the stream to the host.

        Args:
            link: its descriptor.

        Returns:
            The stream, and the cells that serve it.
        """
        self._channel = Channel(move_high(link))
        os.close(link)
        self._interrupts = Interrupts(self._channel)
        return self._channel, Cells(self._channel, self._interrupts, self)

    def run(self, post: Post, tree: WorkerTree, folder: str) -> None:
        """Serves cells until the process ends, which was forked for this.

        Args:
            post: brings the job.
            tree: the process tree of this worker.
            folder: the directory to make and to work in.
        """
        os.setsid()
        sys.argv = [""]
        os.register_at_fork(before=self.flush, after_in_child=self._after_fork)
        link, *files = post.receive_job(MOST_FDS)
        try:
            os.mkdir(folder, 0o700)
        except FileNotFoundError:  # a program that cleans up old files may have removed the directory above
            os.makedirs(folder, 0o700)
        os.chdir(folder)
        channel, cells = self.connect(link)
        spec = channel.next()
        set_limits(spec["limits"])
        cells.memory_bytes = spec["limits"]["memory_bytes"]
        if not cells.begin(spec, files):
            return
        for fd in files:
            os.close(fd)
        checkpoints = Checkpoints(post, tree, spec["checkpoint_bytes"], spec["checkpoint_after"])
        gc.enable()
        cells.say_up()
        done = 0
        while True:
            idle = channel.idle if cells.step() else None
            done += 1
            fds = checkpoints.take(done, self._spare, idle)
            while fds is not None:
                self._resume(fds, post.receive_job(1)[0])
                cells.say_up()
                fds = checkpoints.take(done, self._spare, None)

    def _resume(self, fds: list[int], link: int) -> None:
        """Called in a checkpoint that becomes the worker, because the last worker has ended.

        Args:
            fds: what `Checkpoints.take` returned.
            link: a descriptor of the stream to the host.
        """
        stdout, stderr, memory = fds
        self.pid = os.getpid()
        self._attach(stdout, stderr, mmap.mmap(memory, SHARED))
        self._channel.join(move_high(link))
        for fd in (*fds, link):
            os.close(fd)

    def close(self) -> None:
        """Closes the worker's descriptors."""
        self._channel.leave()
        for fd in self._spare:
            os.close(fd)

    def _renew_descriptors(self) -> None:
        for fd, spare in enumerate(self._spare):
            os.dup2(spare, fd)
            os.set_blocking(fd, True)  # some programs leave a pipe non-blocking

    def _after_fork(self) -> None:
        """Called in a child that the code forked."""
        self._channel.leave()
        STREAMS.leave()
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)

    # for its cells: see `cells.Interpreter`

    def make_main(self) -> dict[str, Any]:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        main.__dict__["__builtins__"] = builtins
        return main.__dict__

    def prepare(self, names: dict[str, Any]) -> dict[str, Any]:
        self._reserve = hold_memory()
        self._renew_descriptors()
        STREAMS.renew()
        _signal.signal(_signal.SIGINT, self._interrupts.on_signal)
        if sys.modules.get("__main__") is None or sys.modules["__main__"].__dict__ is not names:
            main = types.ModuleType("__main__")
            main.__dict__.update(names)
            sys.modules["__main__"] = main
            names = main.__dict__
        return names

    def release_memory(self) -> None:
        self._reserve = None

    def restore(self) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        if sys.getrecursionlimit() < 500:
            sys.setrecursionlimit(1000)
        if libc is not None:
            libc.fflush(None)

    def take_output(self) -> list[str | None]:
        return STREAMS.take()

    def flush(self) -> None:
        STREAMS.spill()
        if libc is not None:
            libc.fflush(None)

    def keep(self, value: Any) -> None:
        builtins._ = value  # type: ignore[attr-defined]
