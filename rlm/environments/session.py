"""The host's side of a REPL, the same for every place that a worker can run."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from typing import Any, Protocol, Self

from rlm.environments.base import (
    AnswerState,
    CellResult,
    CellStatus,
    Query,
    QueryHandler,
    QueryReply,
    SessionSpec,
)
from rlm.environments.worker.wire import Frames, decode, encode, pack
from rlm.errors import ConfigError, REPLError

_log = logging.getLogger(__name__)

DEFAULT_LIMITS = {
    "memory_bytes": 4 << 30,
    "cpu_seconds": 3600,
    "file_bytes": 1 << 30,
    "open_files": 1024,
}
"""What a worker may use, if `SessionSpec.limits` says nothing else. Each holds for one process."""

_STATUSES: tuple[CellStatus, ...] = ("ok", "error", "exit", "interrupted", "killed", "died")
_SLACK = 10.0
"""Seconds after which the host ends a supervisor that did not end a cell by itself."""


class Link(Protocol):
    """The stream to a supervisor, as asyncio's transports have it."""

    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...


class Place(Protocol):
    """Starts supervisors somewhere and gives back the stream to each."""

    inline_contexts: bool
    """Whether contexts must go over the stream."""

    async def connect(self, protocol: asyncio.Protocol, spec: SessionSpec) -> Link:
        """Starts a supervisor and connects its stream to `protocol`.

        Raises:
            REPLError: that failed.
        """
        ...

    def kill(self, supervisor: int) -> None:
        """Ends a supervisor that does not answer, with all that it started."""
        ...


class Wire(asyncio.Protocol):
    """One supervisor, from its start to its end."""

    def __init__(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        self._session = session
        self._frames = Frames()
        self._link: Link | None = None
        self.up: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.ended = loop.create_future()
        self.supervisor = 0
        self.failure = ""
        """Why it could not go on, if it said so."""
        self.condemned = False
        """Its end has been asked for, and it is not to be used any more."""

    def send(self, kind: bytes, message: Any = None) -> None:
        if self._link is not None and not self.ended.done():
            self._link.write(pack(kind, b"" if message is None else encode(message)))

    def send_raw(self, kind: bytes, payload: bytes) -> None:
        if self._link is not None and not self.ended.done():
            self._link.write(pack(kind, payload))

    def attach(self, link: Link) -> None:
        self._link = link

    def abort(self) -> None:
        if self._link is not None:
            self._link.abort()

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                self._received(*frame)
        except Exception as error:
            # Code that got hold of the stream wrote to it. What came after that cannot be trusted.
            self.failure = f"the stream of the REPL was disturbed ({type(error).__name__})"
            self.abort()

    def _received(self, kind: bytes, payload: bytes) -> None:
        message = decode(payload)
        if kind == b"H":
            self.supervisor = int(message["pid"])
        elif kind == b"U":
            if not self.up.done():
                self.up.set_result(message)
        elif kind == b"F":
            self.failure = f"{message['error']}\n{message['details']}".strip()
        else:
            self._session.received(kind, message)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if not self.up.done():
            self.up.cancel()
        self._session.lost(self)


class Session:
    """A REPL over a stream. Belongs to the event loop that opened it."""

    def __init__(self, place: Place, spec: SessionSpec, on_query: QueryHandler) -> None:
        self._place = place
        self._spec = spec
        self._on_query = on_query
        self._limits = {**DEFAULT_LIMITS, **_checked_limits(spec)}
        self._wire: Wire | None = None
        self._cell: asyncio.Future[CellResult] | None = None
        self._number = 0
        self._started = 0.0
        self._queries: set[asyncio.Task[None]] = set()
        self._interrupting = False
        self._answer = AnswerState("", ready=False)
        self._notice = ""
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, place: Place, spec: SessionSpec, on_query: QueryHandler) -> Self:
        """Starts a REPL.

        Raises:
            ConfigError: the specification does not fit.
            REPLError: it could not be started.
        """
        session = cls(place, spec, on_query)
        await session._launch()
        return session

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """See `REPL.execute`. A second call waits for the first."""
        while (busy := self._busy()) is not None:
            await asyncio.wait([busy])
        if self._closing is not None:
            raise REPLError("the REPL is closed")
        cell = self._cell = asyncio.get_running_loop().create_future()
        try:
            if self._wire is None:
                await self._launch()
        except BaseException:
            self._cell = None
            cell.cancel()
            raise
        return await self._run(code, self._time_limit(timeout), cell)

    def _busy(self) -> asyncio.Future[Any] | None:
        """What the next cell has to wait for: the one that runs, or the end of a supervisor that is being killed, which
        would take a cell with it that is none of its business."""
        if self._cell is not None:
            return self._cell
        return self._wire.ended if self._wire is not None and self._wire.condemned else None

    def _time_limit(self, timeout: float | None) -> float | None:
        limits = [limit for limit in (timeout, self._spec.cell_timeout) if limit is not None]
        return max(0.0, min(limits)) if limits else None

    async def _run(self, code: str, timeout: float | None, cell: asyncio.Future[CellResult]) -> CellResult:
        wire = self._wire
        assert wire is not None
        self._number += 1
        self._started = time.monotonic()
        self._interrupting = False
        message = {
            "id": self._number,
            "code": code,
            "timeout": timeout,
            "grace": self._spec.interrupt_grace,
        }
        wire.send(b"X", message)
        backstop = None
        if timeout is not None:
            backstop = asyncio.get_running_loop().call_later(
                timeout + self._spec.interrupt_grace + _SLACK, self._kill, wire
            )
        try:
            return await cell
        except asyncio.CancelledError:
            if self._cell is cell:
                await self._stop(wire)
            raise
        finally:
            if backstop is not None:
                backstop.cancel()

    async def _stop(self, wire: Wire) -> None:
        """Ends the running cell for a caller that was cancelled."""
        cell = self._cell = asyncio.get_running_loop().create_future()
        wire.send(b"I", {"reason": "the caller was cancelled"})
        try:
            done, _ = await asyncio.wait([cell], timeout=self._spec.interrupt_grace + _SLACK)
        except asyncio.CancelledError:
            done = set()  # the caller is in a hurry
        if not done:
            self._kill(wire)

    def _kill(self, wire: Wire) -> None:
        wire.condemned = True
        wire.failure = wire.failure or "an abandoned cell did not stop in time and was killed"
        if wire.supervisor:
            self._place.kill(wire.supervisor)
        else:
            wire.abort()

    def interrupt(self, reason: str) -> None:
        """See `REPL.interrupt`."""
        if self._cell is not None and self._wire is not None:
            self._wire.send(b"I", {"reason": reason})

    async def close(self) -> None:
        """See `REPL.close`."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        wire = self._wire
        queries = list(self._queries)
        for query in queries:
            query.cancel()
        if wire is not None:
            wire.send(b"Z")
            await asyncio.wait([wire.ended], timeout=_SLACK)
            if not wire.ended.done():
                self._kill(wire)
                await asyncio.wait([wire.ended], timeout=_SLACK)
                wire.abort()
        if queries:
            await asyncio.gather(*queries, return_exceptions=True)
        self._spec = replace(self._spec, contexts=())  # a REPL that is kept does not keep its contexts

    # the start

    async def _launch(self) -> None:
        for attempt in (1, 2):
            wire = await self._connect()
            if not wire.up.cancelled():
                self._wire = wire
                return
            if wire.failure or attempt == 2:
                raise REPLError(wire.failure or "the REPL ended while it started")
            # What it was to be forked from may just have ended; the next attempt will see that.

    async def _connect(self) -> Wire:
        """A new supervisor that is up, or has ended."""
        spec = self._spec
        wire = Wire(self)
        size = sum(context.encoded_size for context in spec.contexts)
        try:
            async with asyncio.timeout(30.0 + size / 10e6):
                wire.attach(await self._place.connect(wire, spec))
                wire.send(b"O", self._opening())
                if self._place.inline_contexts:
                    for context in spec.contexts:
                        for chunk in context.chunks():
                            wire.send_raw(b"B", chunk)
                await asyncio.wait([wire.up])
        except TimeoutError as error:
            self._kill(wire)
            raise REPLError("the REPL did not start in time") from error
        except BaseException:
            wire.abort()
            raise
        return wire

    def _opening(self) -> dict[str, Any]:
        spec = self._spec
        return {
            "contexts": [{"kind": c.kind, "bytes": c.encoded_size} for c in spec.contexts],
            "history": [list(messages) for messages in spec.history],
            "limits": self._limits,
            "max_output": spec.max_output_chars,
            "seed": spec.seed,
            "answer": [self._answer.content, self._answer.ready],
        }

    # what comes from the supervisor

    def received(self, kind: bytes, message: Any) -> None:
        if kind == b"Q":
            self._begin_query(message)
        elif kind == b"N":
            self._interrupting = True
            self._cancel_queries()
        elif kind == b"E":
            self._finish(_read_result(message, time.monotonic() - self._started))
        else:
            raise ValueError(f"unknown frame {kind!r}")

    def lost(self, wire: Wire) -> None:
        """The supervisor is gone."""
        self._cancel_queries()
        if wire is not self._wire:
            return
        self._wire = None
        if self._closing is not None:
            why = "the REPL was closed"
        else:
            why = wire.failure or "the processes of the REPL were ended from outside"
            why += "; the namespace is lost and a fresh one has the contexts again"
        if self._cell is None:
            self._notice = f"note: between the cells {why}\n"
            return
        seconds = time.monotonic() - self._started
        status: CellStatus = "killed" if self._closing is not None else "died"
        self._finish(CellResult(status, "", why + "\n", why, self._answer, {}, seconds))

    def _finish(self, result: CellResult) -> None:
        self._answer = result.answer
        if self._notice:
            result = replace(result, stderr=self._notice + result.stderr)
            self._notice = ""
        if result.status in ("killed", "died"):
            self._cancel_queries()
        cell, self._cell = self._cell, None
        if cell is not None and not cell.done():
            cell.set_result(result)

    # queries

    def _begin_query(self, message: Any) -> None:
        number = message["id"]
        prompts, model = message["prompts"], message["model"]
        kind, batched = message["kind"], message["batched"]
        if (
            not isinstance(number, int)
            or not isinstance(prompts, list)
            or not isinstance(model, str | None)
            or kind not in ("llm", "rlm")
        ):
            raise ValueError("a malformed query")
        query = Query(kind, prompts, model, bool(batched))
        task = asyncio.get_running_loop().create_task(self._answer_query(number, query))
        self._queries.add(task)
        task.add_done_callback(self._queries.discard)
        if self._interrupting:
            task.cancel()

    async def _answer_query(self, number: int, query: Query) -> None:
        wire = self._wire
        try:
            replies = list(await self._on_query(query))
            if len(replies) != len(query.prompts):
                raise REPLError(f"{len(replies)} replies to {len(query.prompts)} prompts")
        except Exception as error:
            _log.exception("a query of the code could not be answered")
            text = f"Error: the query could not be answered: {type(error).__name__}: {error}"
            replies = [QueryReply(text, failed=True)] * len(query.prompts)
        if wire is not None:
            wire.send(b"R", {"id": number, "replies": [[reply.text, reply.failed] for reply in replies]})

    def _cancel_queries(self) -> None:
        for task in self._queries:
            task.cancel()


def _checked_limits(spec: SessionSpec) -> dict[str, int]:
    for name, value in spec.limits.items():
        if name not in DEFAULT_LIMITS:
            raise ConfigError(f"there is no limit {name!r}; there are {', '.join(DEFAULT_LIMITS)}")
        if value <= 0:
            raise ConfigError(f"the limit {name} must be positive, not {value!r}")
    for name in ("cell_timeout", "interrupt_grace"):
        seconds = getattr(spec, name)
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise ConfigError(f"{name} must be a positive number of seconds, not {seconds!r}")
    if spec.max_output_chars < 100:
        raise ConfigError(f"max_output_chars must be at least 100, not {spec.max_output_chars!r}")
    return dict(spec.limits)


def _read_result(message: Any, seconds: float) -> CellResult:
    """Reads the end of a cell. Everything in it may be the code's invention, so it becomes nothing but text."""
    status = message["status"]
    if status not in _STATUSES:
        raise ValueError(f"unknown status {status!r}")
    error = message["error"]
    content, ready, note = message["answer"]
    return CellResult(
        status=status,
        stdout=str(message["stdout"]),
        stderr=str(message["stderr"]),
        error=None if error is None else str(error),
        answer=AnswerState(str(content), ready is True, None if note is None else str(note)),
        locals={str(name): str(text) for name, text in message["locals"].items()},
        seconds=seconds,
    )
