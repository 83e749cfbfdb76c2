"""What a worker left to go on from, as the host has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlm.errors import REPLError
from rlm.repl.remote import Remote

_PATIENCE = 30.0
"""Seconds that a checkpoint may take to go on, on a machine that has better things to do."""


class Kept:
    """A checkpoint that waits with its supervisor.

    Args:
        remote: the processes of the worker, which has ended.
        name: of the checkpoint, for the supervisor.
    """

    def __init__(self, remote: Remote, name: int) -> None:
        self.remote = remote
        self._name = name

    async def resume(self, make: Callable[[], Remote]) -> Remote:
        """Has it go on as a worker.

        Args:
            make: makes what becomes of it.

        Raises:
            REPLError: it cannot.
        """
        resume = self.remote.resume
        if resume is None or self.remote.gone.done():
            raise REPLError("it is gone")
        remote = make()
        try:
            async with asyncio.timeout(_PATIENCE):
                remote.attach(await resume(remote.control, remote.work, self._name))
                await asyncio.wait([remote.up])
        except TimeoutError as error:
            remote.abort()
            raise REPLError("it did not go on in time") from error
        except BaseException:
            remote.abort()
            raise
        if remote.up.cancelled():
            raise REPLError(remote.why)
        return remote
