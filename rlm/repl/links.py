"""The seam for places: the streams to one REPL, and what starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from rlm.repl.interface import SessionSpec


class Link(Protocol):
    """The host's half of a stream, with the methods of asyncio's transports."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


Resume = Callable[[asyncio.Protocol, asyncio.Protocol, int], Awaitable["Links"]]
"""Connects to a supervisor and to the checkpoint that continues as its worker. Takes what `Place.connect` takes, and the
name of the checkpoint in place of the specification."""


@dataclass(frozen=True, slots=True)
class Links:
    """The streams to one REPL: to its supervisor and to its worker."""

    control: Link
    work: Link
    end_supervisor: Callable[[], None]
    """Ends the supervisor by force, with all processes that it started. Called only when the supervisor does not answer:
    other REPLs of the same supervisor lose their namespaces too."""
    resume: Resume | None = None
    """Connects to a checkpoint of the worker. None: this place has no checkpoints."""

    def close(self) -> None:
        """Closes both streams. The supervisor then ends the processes of this REPL, and of no other."""
        self.control.abort()
        self.work.abort()

    def kill(self) -> None:
        """Ends a supervisor that does not answer, and closes both streams."""
        self.end_supervisor()
        self.close()


class Place(Protocol):
    """Starts REPLs somewhere, and returns the streams to each."""

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        """Starts a supervisor and a worker. Connects the supervisor's stream to `control` and the worker's stream to `work`.
        A place with a single stream puts a `relay.Relay` between. The method must end in bounded time: the host waits for it.

        Raises:
            REPLError: the processes could not be started.
        """
        ...
