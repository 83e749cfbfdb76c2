"""Requests of the code in a REPL to the host: queries to sub-models, and calls of tools."""

from __future__ import annotations

import asyncio
import logging
import marshal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rlm.errors import REPLError
from rlm.repl.interface import Query, QueryHandler, QueryReply
from rlm.repl.remote import Remote
from rlm.repl.tools import Toolbox, ToolError, ToolReport, converting
from rlm.repl.worker.process.descriptions import cut
from rlm.repl.worker.process.namespace import MOST_MODEL_NAME, MOST_PROMPTS
from rlm.repl.worker.protocol.frames import NUMBER
from rlm.repl.worker.protocol.kinds import ToWorker
from rlm.repl.worker.protocol.messages import head_size, load
from rlm.repl.worker.protocol.tool_values import MOST_BYTES, from_json

_log = logging.getLogger(__name__)

MOST_CALLS = 256
"""Queries and calls of tools of one REPL in flight. Back-pressure: with as many in flight, the worker's stream is not read."""
_MOST_WEIGHT = 64 << 20
"""Bytes of all queries and calls of one REPL in flight, with the same effect."""
_HEAVY = 16
"""Bytes of Python objects that one byte of a head may become."""
_MOST_NAME = 200
"""Characters of the name of a tool in a `ToolReport` and in the log."""
_MOST_PROBLEM = 2000
"""Characters of the text that replaces each reply to a query that could not be answered."""

_MOST_ON_LOOP = 1 << 14
"""Bytes up to which a head is parsed on the event loop rather than in a thread."""


class Calls:
    """The queries and calls of tools of one REPL in flight."""

    def __init__(
        self, tools: Toolbox, on_query: QueryHandler, on_tool: Callable[[ToolReport], None] | None
    ) -> None:
        self._tools = tools
        self._on_query = on_query
        self._on_tool = on_tool
        self._tasks: dict[asyncio.Task[None], int] = {}
        """The weight of each query and call in flight, in bytes."""
        self._weight = 0
        self._reading = asyncio.Lock()
        self._held: Remote | None = None
        """The far side whose stream is on hold until fewer are in flight."""

    def begin_query(self, remote: Remote, payload: bytes) -> None:
        """Starts to answer a query. A malformed query counts as a disturbance of its stream.

        Args:
            remote: the far side that sent the query.

        Raises:
            Exception: the query is malformed. The exception can be of any kind.
        """
        head = head_size(payload)
        if head <= _MOST_ON_LOOP:
            work = self._answer_query(remote, *_query(payload))
        else:
            work = self._read_query(remote, payload)
        self._begin(work, remote, len(payload) + _HEAVY * head)

    def begin_tool(self, remote: Remote, payload: bytes) -> None:
        """Starts a call of a tool. See `begin_query`."""
        weight = len(payload) + _HEAVY * head_size(payload[NUMBER.size : 2 * NUMBER.size])
        self._begin(self._call_tool(remote, payload), remote, weight)

    def cancel(self) -> None:
        """Cancels all queries and calls in flight."""
        for task in self._tasks:
            task.cancel()

    async def end(self) -> None:
        """Cancels all queries and calls in flight, and waits until they have ended."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None], remote: Remote, weight: int) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = weight
        self._weight += weight
        task.add_done_callback(self._end)
        if self._full:
            self._held = remote
            remote.work.hold("calls")

    def _end(self, task: asyncio.Task[None]) -> None:
        self._weight -= self._tasks.pop(task)
        if self._held is not None and not self._full:
            self._held.work.release("calls")
            self._held = None

    @property
    def _full(self) -> bool:
        return len(self._tasks) >= MOST_CALLS or self._weight >= _MOST_WEIGHT

    async def _read(self, function: Callable[[], Any]) -> Any:
        """Parses a payload in a thread. A REPL parses one payload at a time, so that other REPLs get their turns."""
        async with self._reading:
            return await converting(function)

    async def _read_query(self, remote: Remote, payload: bytes) -> None:
        try:
            number, query = await self._read(lambda: _query(payload))
        except Exception as error:
            remote.work.disturb(error)
        else:
            await self._answer_query(remote, number, query)

    async def _answer_query(self, remote: Remote, number: int, query: Query) -> None:
        await remote.work.flows()
        try:
            replies = list(await self._on_query(query))
            if len(replies) != len(query.prompts):
                raise REPLError(f"{len(replies)} replies to {len(query.prompts)} prompts")
        except Exception as error:
            _log.exception("a query of the code could not be answered")
            text = cut(
                f"Error: the query could not be answered: {type(error).__name__}: {error}", _MOST_PROBLEM
            )
            replies = [QueryReply(text, failed=True)] * len(query.prompts)
        remote.tell(
            ToWorker.REPLIES, {"id": number, "replies": [[reply.text, reply.failed] for reply in replies]}
        )

    async def _call_tool(self, remote: Remote, payload: bytes) -> None:
        await remote.work.flows()
        started = time.monotonic()
        name, reply = "?", b""
        failure: ToolError | None = None
        try:
            if len(payload) <= _MOST_ON_LOOP:  # the whole payload counts, as its texts become bytes
                name, args, kwargs = _arguments(payload)
            else:
                name, args, kwargs = await self._read(lambda: _arguments(payload))
            reply = _reply(name, await self._tools.call(name, args, kwargs))
        except ToolError as error:
            failure = error
        # For example, no memory is left. Without a reply the code would wait for ever.
        except Exception as error:
            _log.exception("a call of the tool %s failed", cut(name, _MOST_NAME))
            failure = ToolError(type(error).__name__, "the host could not make this call")
        if failure is not None:
            reply = marshal.dumps((failure.kind, failure.text), 2)
        remote.reply(NUMBER.unpack_from(payload)[0], reply)
        if self._on_tool is not None:
            problem = None if failure is None else str(failure)
            try:
                self._on_tool(ToolReport(cut(name, _MOST_NAME), time.monotonic() - started, problem))
            except Exception:  # a listener that fails does not fail the call
                _log.exception("on_tool failed for a call of the tool %s", name)


def _query(payload: bytes) -> tuple[int, Query]:
    """Parses a query.

    Returns:
        The number of the query, and the query.

    Raises:
        Exception: the query is malformed. The exception can be of any kind.
    """
    message = load(payload)
    number, kind = message["id"], message["kind"]
    prompts, model = message["prompts"], message["model"]
    if (
        not isinstance(number, int)
        or not isinstance(prompts, list)
        or len(prompts) > MOST_PROMPTS
        or not isinstance(model, str | None)
        or len(model or "") > MOST_MODEL_NAME
        or kind not in ("llm", "rlm")
    ):
        raise ValueError("a malformed query")
    return number, Query(kind, prompts, model, bool(message["batched"]))


def _arguments(payload: bytes) -> tuple[str, list[Any], dict[str, Any]]:
    """Parses a call of a tool: the name, the arguments and the keyword arguments.

    Raises:
        ToolError: the call is malformed.
    """
    try:
        name, args, kwargs = load(payload[NUMBER.size :])
        if type(name) is not str or type(args) is not list or type(kwargs) is not dict:
            raise ValueError("it is malformed")
        return (
            name,
            [from_json(item) for item in args],
            {key: from_json(item) for key, item in kwargs.items()},
        )
    except Exception as error:
        problem = cut(f"the host does not understand this call of a tool: {error}", _MOST_PROBLEM)
        raise ToolError("ValueError", problem) from error


def _reply(name: str, result: Any) -> bytes:
    reply = marshal.dumps((None, result), 2)
    if len(reply) > MOST_BYTES:
        raise ToolError(
            "ValueError",
            f"the result of {name}() has {len(reply) >> 20} MB, and may have {MOST_BYTES >> 20}: ask for less",
        )
    return reply
