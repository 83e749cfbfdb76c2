"""Sub-calls from the code to the host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rlm.environments import REPL, Query, QueryReply

OpenREPL = Callable[..., Awaitable[REPL]]


async def test_each_function_sends_its_query(open_repl: OpenREPL) -> None:
    asked: list[Query] = []

    async def answer(query: Query) -> list[QueryReply]:
        asked.append(query)
        return [QueryReply(f"reply {number}") for number in range(len(query.prompts))]

    repl = await open_repl(on_query=answer)
    result = await repl.execute(
        "print(llm_query('a'), rlm_query('b', model='m'))\n"
        "print(llm_query_batched(['c', 'd'], model='m'), rlm_query_batched(p for p in 'ef'))"
    )
    assert result.stdout == "reply 0 reply 0\n['reply 0', 'reply 1'] ['reply 0', 'reply 1']\n"
    assert asked == [
        Query("llm", ["a"], None, batched=False),
        Query("rlm", ["b"], "m", batched=False),
        Query("llm", ["c", "d"], "m", batched=True),
        Query("rlm", ["e", "f"], None, batched=True),
    ]


async def test_texts_arrive_equal(open_repl: OpenREPL) -> None:
    async def same(query: Query) -> list[QueryReply]:
        return [QueryReply(prompt) for prompt in query.prompts]

    repl = await open_repl(on_query=same)
    result = await repl.execute(
        "texts = ['', 'a\\0b', 'x\\r\\ny\\rz', '\\ud83d\\ude00', '\\U0001f600', '\\udc80', '\"\"\"', '\\\\', 'é' * 200_000]\n"
        "llm_query_batched(texts) == texts"
    )
    assert result.stdout == "True\n"


async def test_a_list_or_tuple_is_one_prompt(open_repl: OpenREPL) -> None:
    asked: list[Query] = []

    async def answer(query: Query) -> list[QueryReply]:
        asked.append(query)
        return [QueryReply("ok")]

    repl = await open_repl(on_query=answer)
    await repl.execute("llm_query([{'role': 'user', 'content': 'hi'}]); llm_query(('a', 1))")
    assert [query.prompts for query in asked] == [[[{"role": "user", "content": "hi"}]], [["a", 1]]]


async def test_long_texts_arrive_at_their_places(open_repl: OpenREPL) -> None:
    asked: list[Query] = []

    async def answer(query: Query) -> list[QueryReply]:
        asked.append(query)
        return [QueryReply("ok") for _ in query.prompts]

    repl = await open_repl(on_query=answer)
    await repl.execute(
        "t = '\\udc80é\\U0001f600' * 40\n"
        "prompts = [t, ['a', {t: t, 'b': [t, 1, None, 2.5], 3: t, 'c': {}}, (t, [[t]])], [], True, SubcallError(t), 'x' * 64]\n"
        "rlm_query_batched(prompts)"
    )
    t = "\udc80é\U0001f600" * 40
    assert asked[0].prompts == [
        t, ["a", {t: t, "b": [t, 1, None, 2.5], "3": t, "c": {}}, [t, [[t]]]], [], True, t, "x" * 64,
    ]  # fmt: skip
    assert type(asked[0].prompts[4]) is str


async def test_a_failed_item_can_be_told_from_an_answer(repl: REPL) -> None:
    result = await repl.execute(
        "replies = llm_query_batched(['a', 'fail', 'b'])\n"
        "print([isinstance(r, SubcallError) for r in replies], replies, str(replies[1]).upper())\n"
        "import pickle\nisinstance(pickle.loads(pickle.dumps(replies[1])), SubcallError)"
    )
    assert result.stdout == (
        "[False, True, False] ['llm:a', 'Error: it failed', 'llm:b'] ERROR: IT FAILED\nTrue\n"
    )


async def test_an_error_of_the_host_is_a_failed_item(
    open_repl: OpenREPL, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(query: Query) -> list[QueryReply]:
        raise LookupError("no such thing")

    repl = await open_repl(on_query=broken)
    result = await repl.execute(
        "replies = llm_query_batched(['a', 'b'])\n[type(r).__name__ for r in replies], replies[0]"
    )
    assert "'SubcallError', 'SubcallError'" in result.stdout
    assert "LookupError: no such thing" in result.stdout
    assert "no such thing" in caplog.text


async def test_too_few_replies_make_every_item_fail(
    open_repl: OpenREPL, caplog: pytest.LogCaptureFixture
) -> None:
    async def short(query: Query) -> list[QueryReply]:
        return [QueryReply("only one")]

    repl = await open_repl(on_query=short)
    result = await repl.execute("[type(r).__name__ for r in llm_query_batched(['a', 'b'])]")
    assert result.stdout == "['SubcallError', 'SubcallError']\n"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("llm_query_batched('text')", "TypeError: prompts must be a list of prompts, not a str"),
        ("llm_query_batched({'a': 1})", "TypeError: prompts must be a list of prompts, not a dict"),
        ("llm_query({1, 2})", "TypeError: "),
        ("llm_query(object())", "TypeError: "),
        ("llm_query('a', model=3)", "TypeError: model must be a str or None, not int"),
        ("llm_query()", "TypeError: llm_query() missing 1 required positional argument: 'prompt'"),
        ("llm_query('a', temperature=1)", "TypeError: llm_query() got an unexpected keyword argument"),
        (
            "llm_query_batched(['x' * 10_000_000] * 4)",
            "ValueError: the prompts of one call may have 32 MB of text",
        ),
        (
            "llm_query([[]] * 3_000_000)",
            "ValueError: the prompts of one call may have 4 MB and 500,000 items",
        ),
        (
            "llm_query([['text']] * 500_000)",
            "ValueError: the prompts of one call may have 4 MB and 500,000 items",
        ),
        (
            "llm_query_batched(['x'] * 10_001)",
            "ValueError: one call may have 10,000 prompts, and these are 10,001",
        ),
        ("llm_query('x', model='m' * 1_000_000)", "ValueError: no model has a name of 1,000,000 characters"),
        ("x = ['x' * 20_000]\nx.append(x)\nllm_query_batched(x)", "ValueError: it is nested too deep"),
        ("x = []\nx.append(x)\nllm_query(x)", "ValueError: Circular reference detected"),
    ],
)
async def test_calls_that_cannot_work_raise_a_clear_error(repl: REPL, code: str, error: str) -> None:
    result = await repl.execute(code)
    assert result.error is not None
    assert result.error.startswith(error)
    assert (await repl.execute("llm_query('x')")).stdout == "'llm:x'\n"


async def test_no_prompts_send_no_query(open_repl: OpenREPL) -> None:
    asked: list[Query] = []

    async def answer(query: Query) -> list[QueryReply]:
        asked.append(query)
        return []

    repl = await open_repl(on_query=answer)
    assert (await repl.execute("llm_query_batched([]), rlm_query_batched(())")).stdout == "([], [])\n"
    assert asked == []


async def test_threads_ask_concurrently(open_repl: OpenREPL) -> None:
    together = asyncio.Barrier(8)

    async def meet(query: Query) -> list[QueryReply]:
        await together.wait()
        return [QueryReply(f"{prompt}!") for prompt in query.prompts]

    repl = await open_repl(on_query=meet)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: print(list(pool.map(llm_query, map(str, range(64)))))"
    )
    assert (await repl.execute(code)).stdout == f"{[f'{n}!' for n in range(64)]}\n"


async def test_replies_to_the_main_thread_and_to_threads_may_come_in_any_order(open_repl: OpenREPL) -> None:
    waiting: dict[str, asyncio.Future[None]] = {}

    async def answer(query: Query) -> list[QueryReply]:
        prompt = query.prompts[0]
        waiting[prompt] = asyncio.get_running_loop().create_future()
        # All three wait: the main thread gets the first reply, then the threads in reverse.
        if len(waiting) == 3:
            for name in ("main", "b", "a"):
                waiting[name].set_result(None)
        await waiting[prompt]
        return [QueryReply(prompt.upper())]

    repl = await open_repl(on_query=answer)
    result = await repl.execute(
        "import threading\nreplies = {}\n"
        "def ask(name): replies[name] = llm_query(name)\n"
        "threads = [threading.Thread(target=ask, args=(name,)) for name in 'ab']\n"
        "for t in threads: t.start()\n"
        "ask('main')\n"
        "for t in threads: t.join()\n"
        "sorted(replies.values())"
    )
    assert result.stdout == "['A', 'B', 'MAIN']\n"


async def test_a_reply_to_a_thread_may_come_in_a_later_cell(open_repl: OpenREPL) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        if query.prompts == ["slow"]:
            asked.set()
            await go.wait()
        return [QueryReply("answered")]

    repl = await open_repl(on_query=answer)
    await repl.execute(
        "import threading\nreplies = []\n"
        "thread = threading.Thread(target=lambda: replies.append(llm_query('slow'))); thread.start()"
    )
    await asked.wait()
    assert (await repl.execute("replies, llm_query('quick')")).stdout == "([], 'answered')\n"
    go.set()
    assert (await repl.execute("thread.join(); replies")).stdout == "['answered']\n"


async def test_many_prompts_and_large_prompts_are_answered(open_repl: OpenREPL) -> None:
    async def lengths(query: Query) -> list[QueryReply]:
        return [QueryReply(str(len(prompt))) for prompt in query.prompts]

    repl = await open_repl(on_query=lengths)
    many = await repl.execute(
        "llm_query_batched(['x' * n for n in range(1000)]) == list(map(str, range(1000)))"
    )
    assert many.stdout == "True\n"
    large = await repl.execute("llm_query_batched(['é' * 4_000_000] * 4)")
    assert large.stdout == "['4000000', '4000000', '4000000', '4000000']\n"
    most = await repl.execute("set(llm_query_batched(['\\0' * 64] * 10_000))")
    assert most.stdout == "{'64'}\n"


async def test_an_interrupt_cancels_the_query_and_keeps_the_session(open_repl: OpenREPL) -> None:
    cancelled = asyncio.Event()

    async def never(query: Query) -> list[QueryReply]:
        if query.prompts == ["quick"]:
            return [QueryReply("answered")]
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    repl = await open_repl(on_query=never)
    for _ in range(3):
        result = await repl.execute("x = 1\nllm_query_batched(['a', 'b'])", timeout=0.1)
        assert result.status == "interrupted"
        assert result.error == "interrupted after 0.1 s, the time limit of a cell"
        assert "KeyboardInterrupt" in result.stderr
        await cancelled.wait()
        cancelled.clear()
        assert (await repl.execute("x, llm_query('quick')")).stdout == "(1, 'answered')\n"


@pytest.mark.parametrize("ask", ["pool.map(llm_query, map(str, range(40)))", "[pool.submit(llm_query, 'x')]"])
async def test_an_interrupt_fails_the_queries_of_threads(open_repl: OpenREPL, ask: str) -> None:
    async def never(query: Query) -> list[QueryReply]:
        if query.prompts == ["quick"]:
            return [QueryReply("answered")]
        await asyncio.Event().wait()
        raise AssertionError

    repl = await open_repl(on_query=never, interrupt_grace=20.0)
    result = await repl.execute(
        "from concurrent.futures import ThreadPoolExecutor\nkept = 1\n"
        f"with ThreadPoolExecutor(8) as pool:\n    for reply in {ask}: reply.result()",
        timeout=0.3,
    )
    assert result.status == "interrupted"
    assert result.seconds < 9  # the second SIGINT would come after 10 s, half of the grace period
    assert (await repl.execute("kept, llm_query('quick')")).stdout == "(1, 'answered')\n"


async def test_code_that_catches_the_interrupt_cannot_send_more_queries(open_repl: OpenREPL) -> None:
    async def never(query: Query) -> list[QueryReply]:
        await asyncio.Event().wait()
        raise AssertionError

    repl = await open_repl(on_query=never, interrupt_grace=20.0)
    result = await repl.execute(
        "caught = 0\nfor i in range(1000):\n    try: llm_query(str(i))\n    except BaseException: caught += 1\n"
        "print(caught)",
        timeout=0.2,
    )
    assert result.stdout == "1000\n"


async def test_an_interrupt_never_cuts_a_frame(open_repl: OpenREPL) -> None:
    repl = await open_repl(interrupt_grace=5.0)
    code = "n = 0\nwhile True:\n    n += 1\n    assert llm_query_batched(['x' * 300] * 20) == ['llm:' + 'x' * 300] * 20"
    for number in range(60):
        result = await repl.execute(code, timeout=0.005 + number * 0.0003)
        assert result.status == "interrupted", result.stderr
        check = await repl.execute("llm_query('after')")
        assert check.stdout == "'llm:after'\n"


async def test_the_error_of_an_interrupted_cell_has_the_callers_reason(open_repl: OpenREPL) -> None:
    asked = asyncio.Event()

    async def never(query: Query) -> list[QueryReply]:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    repl = await open_repl(on_query=never)
    repl.interrupt("nothing runs")
    cell = asyncio.create_task(repl.execute("kept = 1; llm_query('x')"))
    await asked.wait()
    repl.interrupt("the budget is spent")
    repl.interrupt("twice")
    result = await cell
    assert result.status == "interrupted"
    assert result.error is not None
    assert result.error.endswith(" s: the budget is spent")
    assert (await repl.execute("kept")).stdout == "1\n"
