"""Programs that serve a REPL end before their event loop does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest


@pytest.fixture(autouse=True)
async def programs_end() -> AsyncIterator[None]:
    """Waits for programs that outlived the half second that `close` waits for them, as on a busy machine."""
    yield
    for _ in range(200):
        if not any(_serves(child) for child in psutil.Process().children()):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.02)  # the event loop notices the end


def _serves(process: psutil.Process) -> bool:
    try:
        return "worker.pyz" in " ".join(process.cmdline())
    except psutil.Error:
        return False
