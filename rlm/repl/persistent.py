"""A REPL that several completions use, one after the other: `persistent=True`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from rlm.context import Context
from rlm.errors import ConfigError, REPLError
from rlm.repl.interface import REPL, Environment, Query, QueryHandler, QueryReply, SessionSpec
from rlm.repl.tools import ToolReport
from rlm.types import Message


class Conversation:
    """Keeps the REPL, the contexts and the histories of the completions. Belongs to the event loop of the first completion.
    Serves one completion at a time; others wait."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._repl: REPL | None = None
        self._handler: QueryHandler | None = None
        self._on_tool: Callable[[ToolReport], None] | None = None
        self._extension: asyncio.Task[None] | None = None
        self.contexts: list[Context] = []
        """The contexts of the completions so far."""
        self.histories: list[list[Message]] = []
        """The messages of the completions so far; the last message of each is the final answer."""

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for the completion before this one, and for an extension of the REPL that is not complete yet.

        Raises:
            ConfigError: the event loop is not that of the first completion.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ConfigError(
                "a persistent RLM belongs to the event loop of its first completion: make one for each loop, "
                "or use completion(), which always runs on the same loop"
            )
        self._loop = loop
        async with self._lock:
            if self._extension is not None:
                await asyncio.wait([self._extension])
            try:
                yield
            finally:
                self._handler = self._on_tool = None  # both keep the objects of the completion in memory

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        """Returns the REPL, extended by the contexts of a completion.

        Args:
            spec: the specification of a REPL with these contexts alone.

        Raises:
            REPLError: the REPL could not be started.
        """
        self._handler, self._on_tool = on_query, spec.on_tool
        if self._repl is not None:
            # The REPL gets the contexts even if the caller is cancelled meanwhile. So they count in that case too.
            self._extension = asyncio.ensure_future(self._extend(self._repl, spec.contexts))
            await asyncio.shield(self._extension)
        if self._repl is None:
            contexts = [*self.contexts, *spec.contexts]
            spec = replace(spec, contexts=contexts, history=list(self.histories), on_tool=self._tell)
            self._repl = await self._environment.open(spec, self._answer)
            self.contexts = contexts
        return self._repl

    async def _extend(self, repl: REPL, contexts: Sequence[Context]) -> None:
        try:
            await repl.extend(contexts, self.histories, fresh_answer=True)
        except REPLError:
            await self.drop()
        else:
            self.contexts = [*self.contexts, *contexts]
        finally:
            self._extension = None

    def remember(self, messages: Sequence[Message], answer: str) -> None:
        """Adds the history of a completion that has ended."""
        self.histories.append([*messages, {"role": "assistant", "content": answer}])

    async def drop(self) -> None:
        """Closes the REPL. The next completion gets a fresh one with all contexts and histories."""
        repl, self._repl = self._repl, None
        if repl is not None:
            await repl.close()

    async def _end(self) -> None:
        await self.drop()
        self.contexts = []

    def close(self) -> None:
        """Closes the REPL and drops the contexts, from any thread. On its own event loop it returns before that is done."""
        loop = self._loop
        if loop is None or self._repl is None or not loop.is_running():
            self.contexts = []
            return
        closing = asyncio.run_coroutine_threadsafe(self._end(), loop)
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not loop:
            closing.result()

    async def aclose(self) -> None:
        """Does what `close` does, from any event loop, and waits until the REPL is closed."""
        loop = self._loop
        if loop is None or loop is asyncio.get_running_loop():
            await self._end()
        elif loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._end(), loop))

    async def _answer(self, query: Query) -> Sequence[QueryReply]:
        if self._handler is None:  # the query comes from a thread that the code left running
            reply = QueryReply("Error: no completion runs in this REPL", failed=True)
            return [reply] * len(query.prompts)
        return await self._handler(query)

    def _tell(self, call: ToolReport) -> None:
        if self._on_tool is not None:
            self._on_tool(call)
