"""Ctrl-C in a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator

_TICK = 0.1
"""Seconds after which a notebook's loop wakes up."""


@contextlib.contextmanager
def heeding_notebooks() -> Iterator[None]:
    """While the block runs, Ctrl-C in a notebook (its "interrupt the kernel") cancels a cell that awaits. ipykernel cancels the
    cell's task from its signal handler, which an event loop that waits for something else does not hear of: so it must not wait
    for long."""
    if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    timer = loop.call_later(_TICK, lambda: tick())

    def tick() -> None:
        nonlocal timer
        timer = loop.call_later(_TICK, tick)

    try:
        yield
    finally:
        timer.cancel()
