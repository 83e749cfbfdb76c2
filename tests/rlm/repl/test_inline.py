"""Cells in the host's own process: `isolation="none"`."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from rlm.environments import REPL, Query, QueryReply, REPLSettings, SessionSpec, make_environment
from rlm.environments.isolation import Isolation
from rlm.errors import ConfigError, REPLError

from .conftest import echo

OpenREPL = Callable[..., Awaitable[REPL]]


@pytest.fixture
def isolation() -> Isolation:
    return "none"


@pytest.fixture(autouse=True)
async def threads_and_streams_are_restored() -> AsyncIterator[None]:
    """After each test its threads end, and the streams of `sys` are as they were."""
    before = sys.stdout, sys.stderr, sys.modules["__main__"], Path.cwd()
    yield
    for thread in threading.enumerate():
        if thread.name in ("rlm-repl", "rlm-repl-supervisor"):
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()
    assert (sys.stdout, sys.stderr, sys.modules["__main__"], Path.cwd()) == before


class Held:
    """Values that only this process has."""

    values: list[object] = []  # noqa: RUF012


async def test_cells_run_in_the_process_of_the_host(open_repl: OpenREPL) -> None:
    Held.values.clear()
    repl = await open_repl(["the", "context"])
    result = await repl.execute(
        f"import os, sys\nheld = sys.modules[{__name__!r}].Held\nheld.values.append(context)\nprint(os.getpid())"
    )
    assert result.stdout == f"{os.getpid()}\n", result
    assert Held.values == [["the", "context"]]
    assert result.locals.keys() == {"os", "sys", "held"}


async def test_output_is_bounded_and_does_not_mix(
    open_repl: OpenREPL, capsys: pytest.CaptureFixture[str]
) -> None:
    repls = [await open_repl(max_output_chars=1000) for _ in range(4)]

    async def talk(number: int) -> str:
        loop = f"for _ in range(20):\n    print({number}, end=''); time.sleep(0)\n"
        code = f"import sys, time\n{loop}print({number}, file=sys.stderr)"
        result = await repls[number].execute(code)
        return result.stdout + result.stderr

    assert await asyncio.gather(*map(talk, range(4))) == [f"{n}" * 20 + f"{n}\n" for n in range(4)]
    flood = await repls[0].execute("for n in range(10_000): print('x' * 100)")
    assert len(flood.stdout) < 1200
    print("mine")
    assert capsys.readouterr().out == "mine\n"


async def test_an_interrupt_keeps_the_namespace(open_repl: OpenREPL) -> None:
    repl = await open_repl(interrupt_grace=10.0)
    for code in (
        "while True: pass",
        "import time\ntry:\n    while True: time.sleep(0.001)\nfinally: after = 1",
        "while True: llm_query('x')",
    ):
        result = await repl.execute("kept = 1\n" + code, timeout=0.1)
        assert (result.status, result.error) == (
            "interrupted",
            "interrupted after 0.1 s, the time limit of a cell",
        )
        assert (await repl.execute("kept, llm_query('y')")).stdout == "(1, 'llm:y')\n"
    assert (await repl.execute("after")).stdout == "1\n"


async def test_an_interrupt_cancels_a_query(open_repl: OpenREPL) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def never(query: Query) -> list[QueryReply]:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    repl = await open_repl(on_query=never, interrupt_grace=10.0)
    cell = asyncio.create_task(repl.execute("llm_query('x')"))
    await asked.wait()
    repl.interrupt("enough")
    result = await cell
    assert result.status == "interrupted"
    assert "enough" in str(result.error)
    assert cancelled.is_set()
    assert (await repl.execute("1")).stdout == "1\n"


async def test_a_cell_that_does_not_yield_is_left_behind(open_repl: OpenREPL) -> None:
    Held.values[:] = [threading.Event()]
    wait = f"import sys\nprint('before')\nsys.modules[{__name__!r}].Held.values[0].wait()\nprint('after')"
    repl = await open_repl("the context", interrupt_grace=0.1)
    await repl.execute("gone = 1; answer['content'] = 'kept'")
    result = await repl.execute(wait, timeout=0.1)
    assert result.status == "killed"
    assert result.stdout == "before\n"
    assert result.answer.content == "kept"
    assert (await repl.execute("'gone' in globals(), context, answer['content']")).stdout == (
        "(False, 'the context', 'kept')\n"
    )
    event = Held.values[0]
    assert isinstance(event, threading.Event)
    event.set()


async def test_close_ends_the_running_cell(open_repl: OpenREPL) -> None:
    asked = asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        asked.set()
        return [QueryReply("go")]

    repl = await open_repl(on_query=answer)
    cell = asyncio.create_task(repl.execute("llm_query('x')\nwhile True: pass"))
    await asked.wait()
    await repl.close()
    assert (await cell).status == "killed"
    with pytest.raises(REPLError, match="closed"):
        await repl.execute("1")


async def test_resource_limits_are_refused() -> None:
    environment = make_environment("local", isolation="none")
    with pytest.raises(ConfigError, match="has no limits of resources"):
        await environment.open(SessionSpec(settings=REPLSettings(limits={"memory_bytes": 1 << 30})), echo)


async def test_cells_do_not_read_the_input_of_the_host(
    open_repl: OpenREPL, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.StringIO("for the host\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    repl = await open_repl()
    asked = await repl.execute("input('a question? ')")
    assert (asked.error, asked.stdout) == ("EOFError: EOF when reading a line", "a question? ")
    left = [await repl.execute(code) for code in ("exit()", "quit(3)", "exit('enough')")]
    assert [result.error for result in left] == ["SystemExit", "SystemExit: 3", "SystemExit: enough"]
    assert {result.status for result in left} == {"exit"}
    assert (await repl.execute("exit")).stdout == "Use exit() to end the cell\n"
    assert stdin.readline() == "for the host\n"


async def test_cells_leave_descriptors_limits_and_builtins_of_the_host_alone(open_repl: OpenREPL) -> None:
    repl = await open_repl()
    before = os.stat(0), os.stat(1), os.stat(2), sys.getrecursionlimit(), psutil.Process().num_fds()
    assert (await repl.execute("1 / 0")).status == "error"
    assert (await repl.execute("5")).stdout == "5\n"
    import builtins

    assert not hasattr(builtins, "_")
    await repl.close()
    after = os.stat(0), os.stat(1), os.stat(2), sys.getrecursionlimit(), psutil.Process().num_fds()
    assert after[:4] == before[:4]
    assert after[4] <= before[4]
