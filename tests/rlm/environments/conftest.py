"""REPLs for tests: real processes, closed at the end of each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from rlm.context import Context
from rlm.environments import REPL, CellResult, Query, QueryHandler, QueryReply, SessionSpec, make_environment


async def echo(query: Query) -> list[QueryReply]:
    """Answers each prompt with `<kind>:<prompt>`; prompts that start with "fail" fail."""
    return [
        QueryReply("Error: it failed", failed=True)
        if isinstance(prompt, str) and prompt.startswith("fail")
        else QueryReply(f"{query.kind}:{prompt}")
        for prompt in query.prompts
    ]


@pytest.fixture
async def open_repl() -> AsyncIterator[Callable[..., Awaitable[REPL]]]:
    """Opens a REPL with these contexts and fields of `SessionSpec`."""
    opened: list[REPL] = []
    environment = make_environment("local")

    async def open_one(*contexts: Any, on_query: QueryHandler = echo, **spec: Any) -> REPL:
        repl = await environment.open(
            SessionSpec(contexts=[Context.of(value) for value in contexts], **spec), on_query
        )
        opened.append(repl)
        return repl

    yield open_one
    for repl in opened:
        await repl.close()


@pytest.fixture
async def repl(open_repl: Callable[..., Awaitable[REPL]]) -> REPL:
    """A REPL whose context is a short text, with a short grace between interrupt and kill."""
    return await open_repl("the context", interrupt_grace=0.5)


@pytest.fixture
def run(repl: REPL) -> Callable[[str], Awaitable[CellResult]]:
    """Runs a cell in `repl`."""
    return repl.execute
