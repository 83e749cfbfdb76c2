"""REPLs for tests: real processes, closed at the end of each test."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlm.context import Context
from rlm.environments import (
    REPL,
    CellResult,
    Query,
    QueryHandler,
    QueryReply,
    REPLSettings,
    SessionSpec,
    ToolReport,
    make_environment,
)
from rlm.environments.isolation import Isolation, probe
from rlm.repl.tools import Toolbox
from rlm.types import Message

LEVELS = ("sandbox!", "process") if probe().level == "sandbox" else ("process",)
"""The isolations that this machine offers, the strictest first."""


WORKER_COMMAND = (sys.executable, "-S", "{archive}")
"""The `command` of a `ProgramEnvironment` without installed packages."""


async def echo(query: Query) -> list[QueryReply]:
    """Answers each prompt with `<kind>:<prompt>`; prompts that start with "fail" fail."""
    return [
        QueryReply("Error: it failed", failed=True)
        if isinstance(prompt, str) and prompt.startswith("fail")
        else QueryReply(f"{query.kind}:{prompt}")
        for prompt in query.prompts
    ]


NAMESPACE = "namespace = os.readlink('/proc/self/ns/pid') if os.path.exists('/proc/self/ns') else 'here'"
"""Code that finds the name of its namespace of process ids."""


async def find(repl: REPL, *pids: str) -> list[psutil.Process]:
    """Finds processes by the ids that they have in a REPL.

    Args:
        pids: expressions that give the ids in the REPL.
    """
    names = ", ".join(pids)
    result = await repl.execute(f"import os\n{NAMESPACE}\nprint(namespace, {names})")
    return named(result.stdout)


def named(line: str) -> list[psutil.Process]:
    """Finds descendants of this process by their ids in another namespace.

    Args:
        line: the name of the namespace, from `NAMESPACE`, and the ids.
    """
    link, *pids = line.split()
    if link == "here":
        return [psutil.Process(int(pid)) for pid in pids]
    found = {
        number: process
        for process in psutil.Process().children(recursive=True)
        for number in [_number(process.pid, link)]
    }
    return [found[int(pid)] for pid in pids]


def _number(pid: int, link: str) -> int:
    """The id of a process in a namespace; 0: it is not in that namespace."""
    try:
        if str(Path(f"/proc/{pid}/ns/pid").readlink()) != link:
            return 0
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])
    except OSError:
        return 0


@pytest.fixture
def isolation() -> Isolation:
    """The isolation of `open_repl`: the strictest. Modules that test all of them override this fixture."""
    return LEVELS[0]  # type: ignore[return-value]


@pytest.fixture
async def open_repl(isolation: Isolation) -> AsyncIterator[Callable[..., Awaitable[REPL]]]:
    """Opens a REPL with these contexts, fields of `SessionSpec` and of `REPLSettings`."""
    opened: list[REPL] = []
    environment = make_environment("local", isolation=isolation)

    async def open_one(
        *contexts: Any,
        on_query: QueryHandler = echo,
        history: Sequence[Sequence[Message]] = (),
        tools: Toolbox | None = None,
        on_tool: Callable[[ToolReport], None] | None = None,
        **settings: Any,
    ) -> REPL:
        values = [Context.of(value) for value in contexts]
        spec = SessionSpec(values, history, tools, on_tool, REPLSettings(**settings))
        repl = await environment.open(spec, on_query)
        opened.append(repl)
        return repl

    yield open_one
    for repl in opened:
        await repl.close()


@pytest.fixture
async def repl(open_repl: Callable[..., Awaitable[REPL]]) -> REPL:
    """A REPL whose context is a short text, with a short grace period and a checkpoint after each cell."""
    return await open_repl("the context", interrupt_grace=0.5, checkpoint_after=0.0)


@pytest.fixture
def run(repl: REPL) -> Callable[[str], Awaitable[CellResult]]:
    """Runs a cell in `repl`."""
    return repl.execute
