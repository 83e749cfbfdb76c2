"""What can be a tool, how the prompt describes it, and how it is called."""

from __future__ import annotations

import asyncio
import builtins
import functools
import marshal
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlm.aio.threads import Threads
from rlm.environments import Query, QueryReply, SessionSpec, make_environment
from rlm.errors import ConfigError
from rlm.repl.tools import RESERVED, Toolbox, ToolError


def search(query: str, limit: int = 10) -> list[str]:
    """Searches the archive
    for documents.

    More about that.
    """
    return [query] * limit


class Point:
    """A place."""

    def __init__(self, x: int, y: int = 0) -> None: ...


class Index:
    def find(self, key: "str | None" = None, *, fuzzy: bool = False) -> dict[str, int]:  # noqa: UP037
        """Finds a key."""
        return {}


def quiet(options: Any = object(), text: str = "x" * 100) -> None: ...  # noqa: B008


@pytest.mark.parametrize(
    ("tool", "line"),
    [
        (search, "- `it(query: str, limit: int = 10) -> list[str]`: Searches the archive for documents."),
        (
            {"tool": search, "description": "Looks\nthings up."},
            "- `it(query: str, limit: int = 10) -> list[str]`: Looks things up.",
        ),
        ({"tool": len}, "- `it(obj, /)`: Return the number of items in a container."),
        (Point, "- `it(x: int, y: int = 0) -> None`: A place."),
        (Index().find, "- `it(key: str | None = None, *, fuzzy: bool = False) -> dict[str, int]`: Finds a key."),
        (functools.partial(search, "x"), "- `it(limit: int = 10) -> list[str]`: Searches the archive for documents."),
        (quiet, "- `it(options: Any = ..., text: str = ...) -> None`"),
        (lambda *a, **k: None, "- `it(*a, **k)`"),
        (5, "- `it`: 5."),
        (None, "- `it`: None."),
        pytest.param(7**9999, "- `it`: an int.", id="huge"),
        ("text", "- `it`: a str of 4 characters."),
        ("t", "- `it`: a str of 1 character."),
        ([1, 2], "- `it`: a list of 2 items."),
        ({1, 2}, "- `it`: a set of 2 items."),
        ({"a": 1}, "- `it`: a dict of 1 item."),
        ({"tool": {"a": 1}}, "- `it`: a dict of 1 item."),
        ({"tool": {"tool": 1}, "description": "one"}, "- `it`: a dict of 1 item. one"),
        ({"tool": 1, "other": 2}, "- `it`: a dict of 2 items."),
        (pd.DataFrame({"a": [1.5]}), "- `it`: a pandas DataFrame of 1 row x 1 column: a (float64)."),
    ],
)  # fmt: skip
def test_how_the_prompt_describes_them(tool: Any, line: str) -> None:
    assert Toolbox.of({"it": tool}).describe() == line


def test_a_function_that_does_not_say_what_it_takes() -> None:
    assert Toolbox.of({"it": type}).describe().startswith("- `it(...)`: type(object)")


def test_one_line_for_each_in_their_order() -> None:
    box = Toolbox.of({"b": search, "a": 1, "c": lambda: "x" * 5_000})
    assert [line[:5] for line in box.describe().splitlines()] == ["- `b(", "- `a`", "- `c("]
    long = Toolbox.of({"a": {"tool": 1, "description": "x" * 5_000}})
    assert len(long.describe()) < 700


def test_no_tools() -> None:
    nothing: dict[str, Any] | None
    for nothing in (None, {}):
        box = Toolbox.of(nothing)
        assert not box
        assert (box.describe(), box.functions, list(box.values)) == ("", [], [])
    some = Toolbox.of({"a": 1})
    assert some
    assert Toolbox.of(some) is some


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("two words", "must be a Python identifier, and 'two words' is none"),
        ("", "must be a Python identifier"),
        ("1st", "must be a Python identifier"),
        (5, "must be a Python identifier, and 5 is none"),
        ("\ufb01", "no tool can be named '\ufb01': Python reads that as 'fi', so call it that"),
        ("class", "no tool can be named 'class': that is a keyword"),
        ("None", "that is a keyword"),
        *[(name, "the REPL has something of its own") for name in sorted(RESERVED)],
        ("context_0", "the REPL has something of its own"),
        ("context_12", "the REPL has something of its own"),
        ("__builtins__", "the REPL has something of its own"),
    ],
)
def test_names_that_cannot_be(name: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        Toolbox.of({name: 1})


@pytest.mark.parametrize("name", ["match", "context_of", "contexts", "größe", "_private", "print"])
def test_names_that_can_be(name: str) -> None:
    assert f"`{name}`" in Toolbox.of({name: 1}).describe()


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ([search], "given as a dict of names and tools, not as a list"),
        (
            {"a": {"tool": search, "description": 5}},
            "the description of the tool 'a' must be a str, not a int",
        ),
        ({"a": object()}, "the tool 'a' is neither callable nor can it be sent: a context must be"),
        (
            {"a": [1, {"b": search}]},
            "the tool 'a' is neither callable nor can it be sent: a[1]['b'] is a function",
        ),
        ({"a": {object}}, "nor can it be sent: a[0] is a type"),
        ({"a": {"tool": search, "descripton": "x"}}, "nor can it be sent: a['tool'] is a function"),
        ({"a": Path("/no/such/file")}, "nor can it be sent: there is no file /no/such/file"),
    ],
)
def test_tools_that_cannot_be(tools: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        Toolbox.of(tools)


async def test_all_names_of_the_repl_are_reserved() -> None:
    async def nobody(query: Query) -> list[QueryReply]:
        raise AssertionError

    repl = await make_environment("local").open(SessionSpec(), nobody)
    names = (await repl.execute("print(*(n for n in globals() if not n.startswith('__')))")).stdout.split()
    await repl.close()
    assert "llm_query" in names
    assert RESERVED.issuperset(names)


async def test_values_are_copies() -> None:
    rows = [[1]]
    box = Toolbox.of({"rows": rows})
    rows[0].append(2)
    ((name, context),) = box.values
    assert name == ""
    assert marshal.loads(b"".join(context.chunks())) == {"rows": [[1]]}


async def test_large_values_go_on_their_own() -> None:
    box = Toolbox.of({"a": 1, "big": "x" * 1_000_000, "b": [2]})
    assert [(name, context.kind) for name, context in box.values] == [("big", "str"), ("", "dict")]


async def test_calls_without_a_repl() -> None:
    box = Toolbox.of({"search": search})
    assert await box.call("search", ["a"], {"limit": 2}) == ["a", "a"]
    with pytest.raises(ToolError, match="NameError: there is no tool 'find'"):
        await box.call("find", [], {})
    with pytest.raises(ToolError, match=r"TypeError: search\(\): missing a required argument: 'query'"):
        await box.call("search", [], {})


async def test_results_do_not_wait_for_tools_that_block() -> None:
    leave = threading.Event()

    async def quick() -> list[int]:
        return [1]

    box = Toolbox.of({"block": leave.wait, "quick": quick})
    blocked = [asyncio.create_task(box.call("block", [], {})) for _ in range(100)]
    assert await box.call("quick", [], {}) == [1]
    assert not any(task.done() for task in blocked)
    leave.set()
    assert await asyncio.gather(*blocked) == [True] * 100


async def test_a_tool_that_is_cancelled_by_its_caller() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Toolbox.of({"wait": wait}).call("wait", [], {}))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_threads_are_used_again_and_bounded() -> None:
    threads = Threads(2)
    seen: set[str] = set()
    lock, most, now = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
            seen.add(str(threading.get_ident()))
        for _ in range(1000):
            pass
        with lock:
            now -= 1

    for _ in range(20):
        await threads.run(work)
    await asyncio.gather(*(threads.run(work) for _ in range(200)))
    assert most <= 2
    assert len(seen) <= 2


async def test_threads_hand_on_results_errors_and_context_variables() -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    threads = Threads(2)
    assert await threads.run(variable.get) == 5
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0)


async def test_a_function_that_never_returns_gives_its_thread_up() -> None:
    threads, leave = Threads(1), threading.Event()
    loop = asyncio.get_running_loop()
    for _ in range(3):
        entered = asyncio.Event()

        def stay(entered: asyncio.Event = entered) -> None:
            loop.call_soon_threadsafe(entered.set)
            leave.wait(30)

        stuck = asyncio.create_task(threads.run(stay))
        await entered.wait()
        waiting = asyncio.create_task(threads.run(lambda: "done"))
        skipped = asyncio.create_task(threads.run(lambda: "never"))
        await asyncio.sleep(0)
        skipped.cancel()
        stuck.cancel()
        assert await waiting == "done"
    leave.set()


def test_a_loop_that_is_gone() -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()
    threads = Threads(1)

    def stay() -> None:
        entered.set()
        leave.wait(30)
        left.set()

    async def main() -> None:
        task = asyncio.create_task(threads.run(stay))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()

    asyncio.run(main())
    leave.set()
    assert left.wait(30)
    assert asyncio.run(_one(threads, lambda: 7)) == 7


async def _one(threads: Threads, function: Callable[[], Any]) -> Any:
    return await threads.run(function)


def test_reserved_names_hide_no_builtin() -> None:
    assert not RESERVED.intersection(vars(builtins))
