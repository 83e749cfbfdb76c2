"""Starts the workers of one REPL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlm.errors import REPLError
from rlm.repl.interface import AnswerState, SessionSpec
from rlm.repl.links import Place
from rlm.repl.remote import BOUND, Remote
from rlm.repl.tools import Toolbox
from rlm.repl.uploads import MOST_FILES, Supply
from rlm.repl.worker.protocol.kinds import ToWorker

_ATTEMPTS = 2


class Launcher:
    """Starts a worker, and a new one when the last one has ended.

    Args:
        make: makes the `Remote` of each worker.
    """

    def __init__(self, place: Place, tools: Toolbox, make: Callable[[], Remote]) -> None:
        self._place = place
        self._tools = tools
        self._make = make

    async def start(self, spec: SessionSpec, answer: AnswerState) -> Remote:
        """Starts a worker with a fresh namespace.

        Args:
            spec: the contexts and the history of the namespace, and the settings of the worker.
            answer: the value of its `answer`.

        Raises:
            REPLError: no worker could be started.
        """
        attempt = 1
        while True:
            remote = await self._connect(spec, answer)
            if not remote.up.cancelled():
                return remote
            # A fork server that has just ended forks no more workers. The next attempt starts another fork server.
            if remote.ending or attempt == _ATTEMPTS:
                await asyncio.wait([remote.gone], timeout=BOUND)
                details = remote.end.printed[1] if remote.end is not None else ""
                raise REPLError(f"{remote.why}, before it could run anything\n{details}".strip())
            attempt += 1

    async def _connect(self, spec: SessionSpec, answer: AnswerState) -> Remote:
        """Starts a far side, and waits until it is up or has ended."""
        remote = self._make()
        supply = remote.supply = Supply(spec.contexts, values=self._tools.values)
        try:
            size = await supply.measure()
            first = replace(spec, contexts=supply.contexts[:MOST_FILES])
            remote.attach(await self._place.connect(remote.control, remote.work, first))
            async with asyncio.timeout(patience(size)):
                remote.tell(ToWorker.OPEN, self._opening(remote, spec, answer))
                await asyncio.wait([remote.up])
        except TimeoutError as error:
            remote.leave()
            raise REPLError("the REPL did not start in time") from error
        except BaseException:
            remote.abort()
            raise
        remote.supply = Supply()
        return remote

    def _opening(self, remote: Remote, spec: SessionSpec, answer: AnswerState) -> dict[str, Any]:
        settings = spec.settings
        return {
            "contexts": remote.supply.announce(),
            "history": [list(messages) for messages in spec.history],
            "tools": self._tools.functions,
            "limits": settings.all_limits,
            "checkpoint_bytes": settings.checkpoint_bytes if remote.resume is not None else 0,
            "checkpoint_after": settings.checkpoint_after,
            "seed": settings.seed,
            "answer": [answer.content, answer.ready],
        }


def patience(size: int) -> float:
    """Seconds that a worker has to take contexts of `size` bytes."""
    return 30.0 + size / 10e6
