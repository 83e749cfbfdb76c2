"""Checks of what the code in a REPL can rely on: namespace, contexts, output, answer."""

from __future__ import annotations

import asyncio
from typing import Any

from rlm.context import Context
from rlm.testing.conformance.bench import (
    Bench,
    check,
    ends,
    expect,
    shows,
)

# the namespace


@check()
async def a_namespace_lasts_from_cell_to_cell(bench: Bench) -> None:
    repl = await bench.open()
    for code, stdout in (
        ("x = 1", ""),
        ("def f():\n    return x + 1", ""),
        ("class C:\n    def g(self):\n        return f()", ""),
        ("x = 2\nC().g()", "3\n"),
        ("_ + 1", "4\n"),
        ("def h():\n    global y\n    y = 5\nh()\ny", "5\n"),
        ("del y\n'y' in globals()", "False\n"),
        ("import asyncio\nawait asyncio.sleep(0)\nprint('awaited')", "awaited\n"),
        ("import json; print(json.dumps({'a': [1, None]}))", '{"a": [1, null]}\n'),
    ):
        await shows(repl, code, stdout)


@check()
async def an_exception_keeps_the_names_before_it_and_shows_its_line(bench: Bench) -> None:
    repl = await bench.open()
    result = await repl.execute("kept = 1\nkept / 0\nkept = 2")
    expect("the result", (result.status, result.error), ("error", "ZeroDivisionError: division by zero"))
    for part in ("line 2", "kept / 0", "ZeroDivisionError"):
        expect(f"{part!r} in the traceback {result.stderr}", part in result.stderr, True)
    await shows(repl, "kept", "1\n")
    await ends(repl, "def broken(:", "error", "SyntaxError")
    await shows(repl, "kept", "1\n")


@check()
async def exit_ends_the_cell_and_not_the_session(bench: Bench) -> None:
    repl = await bench.open()
    await repl.execute("kept = 1")
    await ends(repl, "import sys; sys.exit(3)", "exit")
    await shows(repl, "kept", "1\n")


@check()
async def stdin_is_empty(bench: Bench) -> None:
    await ends(await bench.open(), "input('?')", "error", "EOFError")


@check()
async def each_repl_has_a_namespace_of_its_own(bench: Bench) -> None:
    first, second = await bench.open("first"), await bench.open("second")
    await asyncio.gather(first.execute("x = 1"), second.execute("x = 2"))
    await shows(first, "x, context", "(1, 'first')\n")
    await shows(second, "x, context", "(2, 'second')\n")


@check()
async def names_and_values_are_described(bench: Bench) -> None:
    repl = await bench.open()
    result = await repl.execute("names = ['a', 'b']; count = 2")
    expect("the names", (set(result.locals), result.stdout), ({"names", "count"}, ""))
    shown = await repl.execute("print(SHOW_VARS())")
    expect(f"SHOW_VARS: {shown.stdout}", "count: int" in shown.stdout, True)


@check()
async def a_seed_makes_chance_repeat(bench: Bench) -> None:
    code = "import random; random.random(), hash('text')"
    results = [await (await bench.open(seed=7)).execute(code) for _ in range(2)]
    expect("the second REPL", results[1].stdout, results[0].stdout)
    other = await (await bench.open(seed=8)).execute(code)
    expect("another seed gives another number", other.stdout != results[0].stdout, True)


# contexts

_VALUES: tuple[Any, ...] = (
    "",
    "text",
    "'''\"\"\"\\",
    "a\0b\r\nc\rd\n",
    "\udc80 \ud800 \U0001f600 é 中",
    bytes(range(256)),
    [1, "two", 3.0, None, True, b"six", (7, [8])],
    {1: "int", "1": "str", (1, 2): "tuple", None: "none", 2.5: "float"},
    ({"a": [{"b": ({"c": {1, 2}}, frozenset({"x"}))}]},),
    [2**200, -(2**63), 1e308, -0.0, 3 + 4j],
    ["\udc80", {"\0": "\r\n"}],
    [],
    {},
)


@check()
async def contexts_of_every_kind_arrive_equal(bench: Bench) -> None:
    repl = await bench.open(*_VALUES)
    for number, value in enumerate(_VALUES):
        name = f"context_{number}"
        await shows(repl, f"{name} == {value!a}, type({name}).__name__", f"{(True, type(value).__name__)}\n")
    await shows(repl, f"context == context_{len(_VALUES) - 1}", "True\n")


@check()
async def a_large_context_arrives_whole(bench: Bench) -> None:
    text = "The quick brown fox, é.\n" * 400_000
    repl = await bench.open("first", text)
    code = "import hashlib; len(context), hashlib.sha256(context.encode()).hexdigest(), context_0"
    await shows(repl, code, f"{(len(text), Context(text).sha256, 'first')}\n")


@check()
async def more_contexts_than_descriptors_arrive(bench: Bench) -> None:
    repl = await bench.open(*[f"number {number}" for number in range(300)])
    code = "[globals()[f'context_{n}'] for n in range(300)] == [f'number {n}' for n in range(300)], context"
    await shows(repl, code, "(True, 'number 299')\n")


@check()
async def the_history_is_there(bench: Bench) -> None:
    repl = await bench.open(history=[[{"role": "user", "content": "é"}]])
    await shows(repl, "history", "[[{'role': 'user', 'content': 'é'}]]\n")


@check()
async def the_seconds_of_a_cell_are_measured(bench: Bench) -> None:
    result = await (await bench.open()).execute("import time; time.sleep(0.2)")
    expect(f"{result.seconds} seconds: at least 0.2", result.seconds >= 0.2, True)


# output


@check()
async def output_is_bounded_and_keeps_head_and_tail(bench: Bench) -> None:
    repl = await bench.open(max_output_chars=1000)
    result = await repl.execute(
        "print('head'); [print('x' * 100) for _ in range(5000)]; print('tail'); 1 / 0"
    )
    expect("characters of stdout", len(result.stdout) < 1200, True)
    expect("the head", result.stdout.startswith("head\n"), True)
    expect("the tail", result.stdout.endswith("tail\n"), True)
    expect("the error", "ZeroDivisionError" in result.stderr, True)


@check()
async def stdout_and_stderr_are_apart(bench: Bench) -> None:
    result = await (await bench.open()).execute("import sys; print('out'); print('err', file=sys.stderr)")
    expect("stdout and stderr", (result.stdout, result.stderr), ("out\n", "err\n"))


@check("processes")
async def output_of_programs_is_captured(bench: Bench) -> None:
    repl = await bench.open()
    await shows(
        repl, "import os\nprint('before', flush=True)\ncode = os.system('echo shell')", "before\nshell\n"
    )


@check("processes")
async def code_that_writes_to_every_descriptor_does_not_disturb_the_host(bench: Bench) -> None:
    repl = await bench.open("the context")
    code = "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'garbage' * 100)\n    except OSError: pass"
    result = await repl.execute(code)
    expect(f"{result.status}: the cell ended or died", result.status in ("ok", "died"), True)
    after = await repl.execute("context")
    if after.status == "died":  # the garbage was noticed now
        after = await repl.execute("context")
    expect("the next cell", after.stdout, "'the context'\n")


# the answer


@check()
async def the_answer_is_read_in_every_form(bench: Bench) -> None:
    for code in (
        'answer["content"] = "42"; answer["ready"] = True',
        'answer.update(ready=True, content="42")',
        'answer |= {"content": "42", "ready": True}',
        'answer = {"content": "42", "ready": True}',
        'answer["content"] = 42; answer["ready"] = True',
        'answer.update(content="42", ready=True); 1 / 0',
    ):
        repl = await bench.open()
        answer = (await repl.execute(code)).answer
        expect(code, (answer.content, answer.ready, answer.note), ("42", True, None))
        await shows(repl, "str(answer['content'])", "'42'\n")


@check()
async def an_answer_that_cannot_work_has_a_note(bench: Bench) -> None:
    repl = await bench.open()
    answer = (await repl.execute("answer = 42")).answer
    expect("answer = 42", (answer.content, answer.ready, answer.note is not None), ("42", False, True))
    await shows(repl, "sorted(answer)", "['content', 'ready']\n")
