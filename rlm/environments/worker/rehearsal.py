"""Cells that are run before the first fork.

What they import, make and adapt in the interpreter is then shared by all forks, in place of costing each of them time
and memory.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import gc
import linecache
import socket

from .cells import Worker
from .supervisor import Supervisor
from .wire import Frames, encode, pack, write_all

_CELLS = (
    "x = [1]\nprint(len(context), x)",
    "def f(a):\n    return a / 0\nx",
    "f(1)",
    "class A: pass\nanswer['content'] = A()",
)
_ROUNDS = 64
"""The interpreter adapts code that has run some 50 times."""


class _Rehearsed(Supervisor):
    """A supervisor whose worker is in the same process."""

    worker: Worker

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        self.worker = Worker(theirs.fileno(), self._stdout_in, self._stderr_in)
        theirs.close()
        self._adopt(ours.detach())


def rehearse() -> None:
    """Runs some cells in this process, which is to fork and to do nothing else."""
    host, end = socket.socketpair()
    supervisor = _Rehearsed(end.fileno(), end.fileno(), [], "")
    supervisor.prepare()
    opening = {"contexts": [], "history": [], "answer": ["", False], "max_output": 100}
    write_all(host.fileno(), pack(b"O", encode(opening)))
    supervisor.turn()
    spec = supervisor.worker.receive()
    supervisor.worker.begin(["text"], spec["history"], spec["answer"])
    frames = Frames()
    for number in range(1, _ROUNDS + 1):
        code = _CELLS[number % len(_CELLS)]
        cell = {"id": number, "code": code, "timeout": 100.0, "grace": 1.0}
        write_all(host.fileno(), pack(b"X", encode(cell)))
        supervisor.turn()
        supervisor.worker.step()
        while not _ended(frames):
            supervisor.turn()
            frames.feed(host.recv(1 << 16))
        linecache.cache.clear()
    supervisor.worker.end()
    supervisor.dismantle()
    host.close()
    end.close()
    vars(builtins).pop("_", None)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.disable()


def _ended(frames: Frames) -> bool:
    frame = frames.next()
    while frame is not None and frame[0] != b"E":
        frame = frames.next()
    return frame is not None
