"""Waiting for what must come to its end."""

from __future__ import annotations

import asyncio
from typing import Any


async def until_done(future: asyncio.Future[Any]) -> None:
    """Waits until a task or future is done, however often the caller is cancelled meanwhile. What became of it is not
    looked at.

    Raises:
        asyncio.CancelledError: the caller was cancelled; it is done all the same.
    """
    interrupted: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
