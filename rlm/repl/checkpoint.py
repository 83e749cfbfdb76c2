"""The host's handle on a checkpoint of a worker that has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlm.errors import REPLError
from rlm.repl.remote import Remote

_PATIENCE = 30.0
"""Seconds that a checkpoint may take to continue on a busy machine."""


class KeptCheckpoint:
    """A checkpoint that waits with its supervisor.

    Args:
        remote: the far side whose worker has ended.
        name: the supervisor's name for the checkpoint.
    """

    def __init__(self, remote: Remote, name: int) -> None:
        self.remote = remote
        self._name = name

    async def resume(self, make: Callable[[], Remote]) -> Remote:
        """Has the checkpoint continue as a worker.

        Args:
            make: makes the `Remote` that the worker gets.

        Raises:
            REPLError: the checkpoint is gone, or did not continue in time.
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
            remote.leave()
            raise REPLError("it did not go on in time") from error
        except BaseException:
            remote.abort()
            raise
        if remote.up.cancelled():
            raise REPLError(remote.why)
        return remote
