"""Ctrl-C in a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator

_TICK = 0.1
"""Seconds between the events that wake a notebook's loop."""


@contextlib.contextmanager
def notebook_interrupts() -> Iterator[None]:
    """Lets Ctrl-C ("interrupt the kernel") cancel a notebook cell that awaits, while the block runs.

    ipykernel cancels the cell's task from its signal handler, which does not wake the event loop: the loop sees the
    cancellation at its next event. A timer makes sure that there is one soon. Does nothing outside a notebook.
    """
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
