"""Custom tools: which are accepted, how the prompt describes them, and how they are called."""

from __future__ import annotations

import asyncio
import builtins
import functools
import marshal
import re
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

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
def test_the_prompt_describes_each_kind_of_tool(tool: Any, line: str) -> None:
    assert Toolbox.of({"it": tool}).describe() == line


def test_a_function_without_a_signature_is_described() -> None:
    assert Toolbox.of({"it": type}).describe().startswith("- `it(...)`: type(object)")


def test_each_tool_gets_one_bounded_line_in_order() -> None:
    box = Toolbox.of({"b": search, "a": 1, "c": lambda: "x" * 5_000})
    assert [line[:5] for line in box.describe().splitlines()] == ["- `b(", "- `a`", "- `c("]
    long = Toolbox.of({"a": {"tool": 1, "description": "x" * 5_000}})
    assert len(long.describe()) < 700


def test_a_toolbox_may_be_empty() -> None:
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
        ("two words", "must be a Python identifier, not 'two words'"),
        ("", "must be a Python identifier"),
        ("1st", "must be a Python identifier"),
        (5, "must be a Python identifier, not 5"),
        ("\ufb01", "a tool cannot be named '\ufb01': Python reads that as 'fi', so use this name"),
        ("class", "a tool cannot be named 'class': it is a keyword"),
        ("None", "it is a keyword"),
        *[(name, "the REPL uses that name itself") for name in sorted(RESERVED)],
        ("context_0", "the REPL uses that name itself"),
        ("context_12", "the REPL uses that name itself"),
        ("__builtins__", "the REPL uses that name itself"),
    ],
)
def test_an_invalid_name_is_refused(name: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        Toolbox.of({name: 1})


@pytest.mark.parametrize("name", ["match", "context_of", "contexts", "größe", "_private", "print"])
def test_a_valid_name_is_accepted(name: str) -> None:
    assert f"`{name}`" in Toolbox.of({name: 1}).describe()


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        ([search], "given as a dict of names and tools, not as a list"),
        (
            {"a": {"tool": search, "description": 5}},
            "the description of the tool 'a' must be a str, not a int",
        ),
        ({"a": object()}, "the tool 'a' is not callable and cannot be sent: a context must be"),
        (
            {"a": [1, {"b": search}]},
            "the tool 'a' is not callable and cannot be sent: a[1]['b'] is a function",
        ),
        ({"a": {object}}, "cannot be sent: a[0] is a type"),
        ({"a": {"tool": search, "descripton": "x"}}, "cannot be sent: a['tool'] is a function"),
        ({"a": Path("/no/such/file")}, "cannot be sent: there is no file /no/such/file"),
    ],
)
def test_a_tool_that_cannot_be_sent_is_refused(tools: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        Toolbox.of(tools)


async def test_all_names_of_the_repl_are_reserved() -> None:
    async def no_queries(query: Query) -> list[QueryReply]:
        raise AssertionError

    repl = await make_environment("local").open(SessionSpec(), no_queries)
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


async def test_a_large_value_is_sent_separately() -> None:
    box = Toolbox.of({"a": 1, "big": "x" * 1_000_000, "b": [2]})
    assert [(name, context.kind) for name, context in box.values] == [("big", "str"), ("", "dict")]


async def test_tools_can_be_called_without_a_repl() -> None:
    box = Toolbox.of({"search": search})
    assert await box.call("search", ["a"], {"limit": 2}) == ["a", "a"]
    with pytest.raises(ToolError, match="NameError: there is no tool 'find'"):
        await box.call("find", [], {})
    with pytest.raises(ToolError, match=r"TypeError: search\(\): missing a required argument: 'query'"):
        await box.call("search", [], {})


async def test_a_quick_tool_does_not_wait_for_tools_that_block() -> None:
    leave = threading.Event()

    async def quick() -> list[int]:
        return [1]

    box = Toolbox.of({"block": leave.wait, "quick": quick})
    blocked = [asyncio.create_task(box.call("block", [], {})) for _ in range(100)]
    assert await box.call("quick", [], {}) == [1]
    assert not any(task.done() for task in blocked)
    leave.set()
    assert await asyncio.gather(*blocked) == [True] * 100


async def test_a_tool_is_cancelled_with_its_caller() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Toolbox.of({"wait": wait}).call("wait", [], {}))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_reserved_names_hide_no_builtin() -> None:
    assert not RESERVED.intersection(vars(builtins))
