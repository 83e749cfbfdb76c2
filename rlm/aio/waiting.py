"""Waiting for the end of a task, also while the caller is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any


async def until_done(future: asyncio.Future[Any]) -> None:
    """Waits until a task or future is done, however often the caller is cancelled meanwhile. The caller then reads the result
    from the future.

    Raises:
        asyncio.CancelledError: the caller was cancelled. The future is done nevertheless.
    """
    interrupted: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
