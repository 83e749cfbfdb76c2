"""Contexts of any type and size arrive equal to what was given, once for all REPLs."""

# ruff: noqa: ASYNC240 (nothing else runs on the loop that a look at a file blocks)

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlm.context import Context
from rlm.environments import REPL

OpenREPL = Callable[..., Awaitable[REPL]]

VALUES: list[Any] = [
    "",
    "text",
    'ends with a quote"',
    "'''\"\"\"\\",
    "a\0b\r\nc\rd\n",
    "\udc80 \ud800 \U0001f600 é 中",
    "\ud83d\ude00",
    b"",
    bytes(range(256)),
    [],
    {},
    (),
    [1, 2, 3],
    [1, "two", 3.0, None, True, b"six", (7, [8])],
    {1: "int", "1": "str", (1, 2): "tuple", None: "none", 2.5: "float", False: 0},
    ({"a": [{"b": ({"c": {1, 2}}, frozenset({"x"}))}]},),
    [2**200, -(2**63), 1e308, -0.0, math.inf, 3 + 4j],
    ["\udc80", {"\0": "\r\n"}],
]


@pytest.mark.parametrize("value", VALUES, ids=ascii)
async def test_values_arrive_equal_and_of_the_same_types(open_repl: OpenREPL, value: Any) -> None:
    repl = await open_repl(value)
    result = await repl.execute("ascii(context)")
    assert result.stdout == ascii(ascii(value)) + "\n"


async def test_nan_arrives_as_nan(open_repl: OpenREPL) -> None:
    repl = await open_repl([math.nan])
    assert (await repl.execute("context[0] != context[0]")).stdout == "True\n"


async def test_contexts_and_history_have_their_names(open_repl: OpenREPL) -> None:
    messages = [{"role": "user", "content": "earlier \udc80"}]
    repl = await open_repl("first", ["second"], history=[messages])
    result = await repl.execute("print(context_0, context_1, context is context_1, ascii(history))")
    assert result.stdout == f"first ['second'] True {[messages]!a}\n"
    without = await open_repl()
    assert (await without.execute("'context' in globals(), history")).stdout == "(False, [])\n"


async def test_each_repl_has_its_own_copy_of_a_context(open_repl: OpenREPL) -> None:
    context = Context({"a": [1]})
    one, other = await open_repl(context), await open_repl(context)
    await one.execute("context['a'].append(2)")
    assert (await other.execute("context")).stdout == "{'a': [1]}\n"


async def test_two_hundred_contexts_arrive(open_repl: OpenREPL) -> None:
    repl = await open_repl(*[f"number {number}" for number in range(200)])
    assert (
        await repl.execute("print(context_0, context_199, context)")
    ).stdout == "number 0 number 199 number 199\n"


async def test_a_large_context_is_written_once(open_repl: OpenREPL) -> None:
    context = Context("line of text, é\n" * 500_000)
    for _ in range(3):
        repl = await open_repl(context)
        result = await repl.execute(
            "import hashlib\nlen(context), hashlib.sha256(context.encode()).hexdigest()"
        )
        assert result.stdout == f"({context.size}, '{context.sha256}')\n"
    assert context.file() == context.file()


async def test_a_context_file_is_sealed_and_freed() -> None:
    context = Context("secret" * 1000)
    fd = context.file()
    with pytest.raises(OSError, match="not permitted"):
        os.write(fd, b"changed")
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(fd, 0)
    name = Path(f"/proc/self/fd/{fd}").readlink()
    assert "rlm-context" in str(name)
    inode = os.fstat(fd).st_ino
    del context
    gc.collect()
    with contextlib.suppress(OSError):  # closed, and its number has not been used again
        assert os.fstat(fd).st_ino != inode


async def test_the_code_cannot_change_the_context_of_others(open_repl: OpenREPL) -> None:
    context = Context("shared" * 100)
    one = await open_repl(context)
    await one.execute(
        "import os\nfor fd in map(int, os.listdir(f'/proc/{os.getppid()}/fd')):\n"
        "    try: open(f'/proc/{os.getppid()}/fd/{fd}', 'r+b').write(b'X' * 50)\n    except OSError: pass"
    )
    other = await open_repl(context)
    assert (await other.execute("context == 'shared' * 100")).stdout == "True\n"
