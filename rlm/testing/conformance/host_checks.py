"""Checks of what passes between the code and the host: sub-calls, tools, extensions."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

from rlm.context import Context
from rlm.repl.interface import Query, QueryReply
from rlm.testing.conformance.bench import (
    Bench,
    check,
    echo,
    ends,
    expect,
    shows,
)

# sub-calls


@check()
async def the_four_functions_ask_the_host(bench: Bench) -> None:
    asked: list[Query] = []

    async def note(query: Query) -> list[QueryReply]:
        asked.append(query)
        return await echo(query)

    repl = await bench.open(on_query=note)
    await shows(repl, "llm_query('a')", "'llm:a'\n")
    await shows(repl, "llm_query_batched(['b', 'c'], model='small')", "['llm:b', 'llm:c']\n")
    await shows(repl, "rlm_query('d')", "'rlm:d'\n")
    await shows(repl, "rlm_query_batched(['e'])", "['rlm:e']\n")
    kinds = [("llm", None, False), ("llm", "small", True), ("rlm", None, False), ("rlm", None, True)]
    expect("the queries", [(query.kind, query.model, query.batched) for query in asked], kinds)


@check()
async def prompts_and_replies_arrive_equal(bench: Bench) -> None:
    repl = await bench.open()
    text = "\udc80 \0 \r\n é " * 20_000
    await shows(repl, f"p = {text[:12]!a} * 20_000; llm_query(p) == 'llm:' + p", "True\n")
    code = "r = llm_query_batched([str(n) for n in range(1000)]); r == [f'llm:{n}' for n in range(1000)]"
    await shows(repl, code, "True\n")


@check()
async def a_failed_sub_call_is_a_value_of_its_own_type(bench: Bench) -> None:
    repl = await bench.open()
    code = "good, bad = llm_query_batched(['a', 'fail'])\ngood, bad, isinstance(bad, SubcallError)"
    await shows(repl, code, "('llm:a', 'Error: it failed', True)\n")


@check()
async def threads_ask_at_the_same_time(bench: Bench) -> None:
    waiting = asyncio.Barrier(8)

    async def meet(query: Query) -> list[QueryReply]:
        async with asyncio.timeout(20 * bench.pace):
            await waiting.wait()
        return await echo(query)

    repl = await bench.open(on_query=meet)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: print(list(pool.map(llm_query, 'abcdefgh')))"
    )
    await shows(repl, code, f"{[f'llm:{letter}' for letter in 'abcdefgh']}\n")


# tools


@check()
async def tools_are_called_with_plain_values(bench: Bench) -> None:
    async def later(value: Any, *, times: int = 1) -> Any:
        await asyncio.sleep(0)
        return [value] * times

    class RefusedError(Exception):
        pass

    def fail(key: str) -> None:
        raise KeyError(key)

    def refuse() -> None:
        raise RefusedError("no")

    tools = {"double": lambda x: 2 * x, "later": later, "fail": fail, "refuse": refuse, "UNIT": "km"}
    repl = await bench.open(tools=tools)
    await shows(repl, "double(21), double((1, b'x')), UNIT", "(42, (1, b'x', 1, b'x'), 'km')\n")
    await shows(repl, "later({'a': {1}}, times=2)", "[{'a': {1}}, {'a': {1}}]\n")
    await shows(repl, "try: fail('k')\nexcept KeyError as error: print(error)", "'k'\n")
    await shows(repl, "try: refuse()\nexcept ToolError as error: print(error)", "RefusedError: no\n")
    await repl.execute("double = None")
    await shows(repl, "double(2)", "4\n")


# extension


@check()
async def an_extension_brings_contexts_and_history(bench: Bench) -> None:
    repl = await bench.open("first")
    await repl.execute("kept = 1; answer.update(content='old', ready=True)")
    await repl.extend([Context("second"), Context(["third"])], [[{"role": "user", "content": "x"}]])
    code = "kept, context_0, context_1, context, history[0][0]['content'], answer['content']"
    await shows(repl, code, "(1, 'first', 'second', ['third'], 'x', 'old')\n")
    await repl.extend(fresh_answer=True)
    await shows(repl, "answer", "{'content': '', 'ready': False}\n")
    text = random.Random(1).randbytes(2_000_000)
    await repl.extend([Context(text)])
    await shows(
        repl, "import hashlib; hashlib.sha256(context).hexdigest()", f"'{hashlib.sha256(text).hexdigest()}'\n"
    )


@check("processes")
async def a_fresh_worker_has_what_an_extension_brought(bench: Bench) -> None:
    repl = await bench.open("first", checkpoint_bytes=0)
    await repl.extend([Context("second")])
    await ends(repl, "import os; os._exit(1)", "died")
    await shows(repl, "context_0, context", "('first', 'second')\n")
