"""What the code of a REPL asks the host for: answers of sub-models, and tools."""

from __future__ import annotations

import asyncio
import logging
import marshal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from rlm.environments.base import Query, QueryHandler, QueryReply
from rlm.environments.remote import Remote
from rlm.environments.worker.texts import cut
from rlm.environments.worker.values import MOST_BYTES, from_json
from rlm.environments.worker.wire import NUMBER, ProtocolError, decode
from rlm.errors import REPLError
from rlm.tools import Toolbox, ToolCall, ToolError, in_thread

_log = logging.getLogger(__name__)

_MOST_NAME = 200
"""Characters of the name of a tool that is told to who listens."""

_QUICK = 1 << 16
"""Bytes that are taken apart on the event loop rather than in a thread."""


class Calls:
    """The queries and calls of tools that one REPL has on the way."""

    def __init__(
        self, tools: Toolbox, on_query: QueryHandler, on_tool: Callable[[ToolCall], None] | None
    ) -> None:
        self._tools = tools
        self._on_query = on_query
        self._on_tool = on_tool
        self._tasks: set[asyncio.Task[None]] = set()

    def begin_query(self, remote: Remote, message: Any, *, void: bool) -> None:
        """Answers a query.

        Args:
            remote: where it comes from.
            void: the cell that asked was interrupted.

        Raises:
            Exception: of any kind: this is no query.
        """
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
        self._begin(self._answer_query(remote, number, Query(kind, prompts, model, bool(batched))), void)

    def begin_tool(self, remote: Remote, payload: bytes, *, void: bool) -> None:
        """Calls a tool. See `begin_query`."""
        if len(payload) < NUMBER.size or len(payload) > MOST_BYTES + NUMBER.size:
            raise ProtocolError("a malformed call of a tool")
        self._begin(self._call_tool(remote, payload), void)

    def cancel(self) -> None:
        """Cancels all of them: the worker does not wait for replies any more."""
        for task in self._tasks:
            task.cancel()

    async def end(self) -> None:
        """Cancels all of them, and waits for their ends."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None], void: bool) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if void:
            task.cancel()

    async def _answer_query(self, remote: Remote, number: int, query: Query) -> None:
        try:
            replies = list(await self._on_query(query))
            if len(replies) != len(query.prompts):
                raise REPLError(f"{len(replies)} replies to {len(query.prompts)} prompts")
        except Exception as error:
            _log.exception("a query of the code could not be answered")
            text = f"Error: the query could not be answered: {type(error).__name__}: {error}"
            replies = [QueryReply(text, failed=True)] * len(query.prompts)
        remote.tell(b"R", {"id": number, "replies": [[reply.text, reply.failed] for reply in replies]})

    async def _call_tool(self, remote: Remote, payload: bytes) -> None:
        started = time.monotonic()
        name, failure, reply = "?", None, b""
        try:
            if len(payload) <= _QUICK:
                name, args, kwargs = _arguments(payload)
            else:
                name, args, kwargs = await in_thread(lambda: _arguments(payload))
            reply = _reply(name, await self._tools.call(name, args, kwargs))
        except ToolError as error:
            failure = error
            reply = marshal.dumps((error.kind, error.text), 2)
        remote.reply(NUMBER.unpack_from(payload)[0], reply)
        if self._on_tool is not None:
            problem = None if failure is None else str(failure)
            try:
                self._on_tool(ToolCall(cut(name, _MOST_NAME), time.monotonic() - started, problem))
            except Exception:  # nothing flows back from who only listens
                _log.exception("a call of the tool %s was not noted", name)


def _arguments(payload: bytes) -> tuple[str, list[Any], dict[str, Any]]:
    """Reads a call, whatever the worker sent."""
    try:
        name, args, kwargs = decode(payload[NUMBER.size :])
        if type(name) is not str or type(args) is not list or type(kwargs) is not dict:
            raise ValueError("no call")
        return (
            name,
            [from_json(item) for item in args],
            {key: from_json(item) for key, item in kwargs.items()},
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise ToolError("ValueError", "the host does not understand this call of a tool") from error


def _reply(name: str, result: Any) -> bytes:
    reply = marshal.dumps((None, result), 2)
    if len(reply) > MOST_BYTES:
        raise ToolError(
            "ValueError",
            f"the result of {name}() has {len(reply) >> 20} MB, and may have {MOST_BYTES >> 20}: ask for less",
        )
    return reply
