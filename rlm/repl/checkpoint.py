"""The checkpoint of a worker that has ended, and the cells that ran before it was made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlm.errors import REPLError
from rlm.repl.remote import Remote
from rlm.repl.worker.protocol.kinds import ToSupervisor

_PATIENCE = 30.0
"""Seconds that a checkpoint may take to become the worker on a busy machine."""


_AS_IT_WAS = "the namespace is as it was"


class Progress:
    """Counts the cells and extensions of a namespace, and keeps the checkpoint of its last worker."""

    def __init__(self) -> None:
        self._done = 0
        """Cells and extensions that the worker has completed."""
        self._grown = 0
        """The value of `_done` after the last extension."""
        self.kept: KeptCheckpoint | None = None
        """The checkpoint of the last worker, which has ended."""

    def restart(self) -> None:
        """Called when a fresh worker starts, which has the contexts of all extensions."""
        self._done = self._grown = 0

    def add(self, *, extension: bool = False) -> None:
        """Called when the worker has completed a cell, or an extension."""
        self._done += 1
        if extension:
            self._grown = self._done

    def keep(self, remote: Remote, *, in_cell: bool) -> str:
        """Keeps the checkpoint of a worker that has ended, if it has the contexts of all extensions.

        Args:
            in_cell: whether the worker ended in a cell.

        Returns:
            A text for the model about the checkpoint; empty if there is no such checkpoint.
        """
        checkpoint = remote.end.checkpoint if remote.end is not None else None
        if checkpoint is None:
            return ""
        name, done = checkpoint
        if not self._grown <= done <= self._done:
            remote.order(ToSupervisor.END)
            return ""
        self.kept = KeptCheckpoint(remote, name)
        behind, self._done = self._done - done, done
        if not behind:
            return _AS_IT_WAS + (" before this cell" if in_cell else "")
        return f"{_AS_IT_WAS} before the last {behind + in_cell} cells"

    def take(self) -> KeptCheckpoint | None:
        """Hands the checkpoint over."""
        kept, self.kept = self.kept, None
        return kept


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
        """Makes the checkpoint a worker again.

        Args:
            make: makes the `Remote` of the worker.

        Raises:
            REPLError: the checkpoint is gone, or did not become a worker in time.
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
