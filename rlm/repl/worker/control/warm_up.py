"""Cells that the fork server runs before its first fork.

All workers then share what these cells import, create and specialise in the interpreter. Otherwise each worker would
spend time and memory on it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import builtins
import gc
import linecache
import marshal
import mmap
import os
import socket

from ..process import streams
from ..process.worker import Worker
from ..protocol.frames import pack, write_all
from ..protocol.kinds import ToWorker

_CELLS = (
    "x = [1]\nprint(len(history), x)",
    "def f(a):\n    return a / 0\nx",
    "f(1)",
    "class A: pass\nanswer['content'] = A()",
)
_ROUNDS = 64
"""Cells to run. The interpreter specialises code that has run about 50 times."""


def warm_up() -> None:
    """Runs some cells in this process, the fork server. Afterwards the garbage collector is off and SIGINT is ignored."""
    host, end = socket.socketpair()
    streams.STREAMS.watch()
    pipes = os.pipe(), os.pipe()
    with mmap.mmap(-1, streams.SHARED) as memory:
        worker = Worker(pipes[0][1], pipes[1][1], memory)
        channel, cells = worker.connect(end.detach())
        opening = {"history": [], "answer": ["", False], "tools": [], "contexts": [], "seed": None}
        write_all(host.fileno(), pack(ToWorker.OPEN, marshal.dumps(opening)))
        cells.begin(channel.next(), [])
        for number in range(1, _ROUNDS + 1):
            cell = {"id": number, "code": _CELLS[number % len(_CELLS)]}
            write_all(host.fileno(), pack(ToWorker.RUN, marshal.dumps(cell)))
            cells.step()
            host.recv(1 << 16)
            linecache.cache.clear()
        worker.close()
    host.close()
    for fd in (*pipes[0], *pipes[1]):
        os.close(fd)
    vars(builtins).pop("_", None)
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.disable()
