"""Extensions: further contexts, histories and a fresh answer for a REPL that runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlm.context import Context
from rlm.environments import REPL, Query, QueryReply, SessionSpec
from rlm.errors import REPLError
from rlm.repl.session import Session
from rlm.repl.tools import Toolbox
from rlm.repl.worker.protocol.kinds import FromWorker
from rlm.types import Message

from .test_session import Liar

OpenREPL = Callable[..., Awaitable[REPL]]


async def no_queries(query: Query) -> list[QueryReply]:
    raise AssertionError


def contexts(*values: Any) -> list[Context]:
    return [Context(value) for value in values]


async def test_a_repl_without_a_context_gets_its_first(open_repl: OpenREPL) -> None:
    repl = await open_repl()
    await repl.extend(contexts(""))
    assert (await repl.execute("context, context_0")).stdout == "('', '')\n"


@pytest.mark.parametrize(
    "value",
    [
        "a\0b\r\n\udc80\ud83d\ude00\U0001f600",
        b"",
        [],
        {1: (2, {3}), None: [math.inf, 2**200]},
        "é" * 3_000_000,
        [("x" * 100, n) for n in range(100_000)],
    ],
    ids=range(6),
)
async def test_values_of_an_extension_arrive_equal(open_repl: OpenREPL, value: Any) -> None:
    repl = await open_repl()
    context = Context(value)
    await repl.extend([context])
    same = await open_repl(context)
    code = "import hashlib; hashlib.sha256(ascii(context).encode()).hexdigest()"
    assert (await repl.execute(code)).stdout == (await same.execute(code)).stdout


async def test_a_history_is_replaced_and_stays_otherwise(open_repl: OpenREPL) -> None:
    first: list[Message] = [{"role": "user", "content": "one \udc80"}]
    second: list[Message] = [{"role": "user", "content": [{"type": "text", "text": "two"}]}]
    repl = await open_repl("x", history=[first])
    await repl.extend(contexts("y"))
    assert (await repl.execute("ascii(history)")).stdout == f"{ascii([first])!a}\n"
    await repl.extend(history=[first, second])
    assert (await repl.execute("ascii(history), context")).stdout == f"({ascii([first, second])!a}, 'y')\n"
    await repl.execute("import os; os._exit(1)")
    assert (await repl.execute("ascii(history), context")).stdout == f"({ascii([first, second])!a}, 'y')\n"
    await repl.extend(history=[])
    assert (await repl.execute("history")).stdout == "[]\n"


async def test_an_extension_can_empty_the_answer(open_repl: OpenREPL) -> None:
    repl = await open_repl("x")
    result = await repl.execute("answer['content'] = 'old'; answer['ready'] = True; old = answer")
    assert result.answer.ready
    await repl.extend(contexts("y"))
    assert (await repl.execute("1")).answer.content == "old"
    await repl.extend(contexts("z"), fresh_answer=True)
    result = await repl.execute("answer, old")
    assert result.stdout == "({'content': '', 'ready': False}, {'content': 'old', 'ready': True})\n"
    assert (result.answer.content, result.answer.ready) == ("", False)
    assert (await repl.execute("old['content'] = 'no'")).answer.content == ""
    assert (await repl.execute("answer['content'] = 'new'")).answer.content == "new"


@pytest.mark.parametrize("end", ["import os; os._exit(1)", "sum(range(10**12))"])
async def test_a_fresh_worker_gets_all_extensions(open_repl: OpenREPL, end: str) -> None:
    repl = await open_repl(
        "first", interrupt_grace=0.1, tools=Toolbox.of({"LIMIT": 5, "double": lambda x: 2 * x})
    )
    await repl.execute("answer['content'] = 'old'")
    await repl.extend(contexts("second"), [[{"role": "user", "content": "q"}]], fresh_answer=True)
    assert (await repl.execute(end, timeout=0.3)).status in ("died", "killed")
    result = await repl.execute("print(context_0, context_1, context, history, answer, double(LIMIT))")
    assert result.stdout == (
        "first second second [[{'role': 'user', 'content': 'q'}]] {'content': '', 'ready': False} 10\n"
    )


async def test_an_extension_of_a_dead_worker_reaches_the_next_worker(open_repl: OpenREPL) -> None:
    repl = await open_repl("first")
    await repl.execute("answer['content'] = 'old'")
    assert (await repl.execute("import os; os._exit(1)")).status == "died"
    await repl.extend(contexts("second"), fresh_answer=True)
    result = await repl.execute("print(context_0, context_1, context, answer)")
    assert result.stdout == "first second second {'content': '', 'ready': False}\n"


async def test_an_extension_survives_a_worker_that_dies_meanwhile(open_repl: OpenREPL) -> None:
    repl = await open_repl("first")
    code = (
        "import threading, os, time\n"
        "def leave():\n    time.sleep(0.05); os._exit(1)\n"
        "threading.Thread(target=leave).start()"
    )
    await repl.execute(code)
    big = Context("second, long " * 8_000_000)
    await repl.extend([big])
    result = await repl.execute("print(context_0, len(context_1), context is context_1)")
    assert result.stdout == f"first {big.size} True\n"
    assert "a fresh one has the contexts again" in result.stderr


async def test_a_context_that_does_not_fit_changes_nothing(open_repl: OpenREPL) -> None:
    repl = await open_repl("first", limits={"memory_bytes": 300_000_000})
    await repl.execute("kept = 1; answer['content'] = 'old'")
    with pytest.raises(REPLError, match=r"do not fit in the memory of a REPL, 300,000,000 bytes"):
        await repl.extend(contexts("fits", "x" * 250_000_000), [[]], fresh_answer=True)
    result = await repl.execute("kept, context, history, 'context_1' in globals()")
    assert result.stdout == "(1, 'first', [], False)\n"
    assert result.answer.content == "old"
    await repl.extend(contexts("second"))
    assert (await repl.execute("context_1")).stdout == "'second'\n"
    await repl.execute("import os; os._exit(1)")
    assert (await repl.execute("context_0, context_1, context")).stdout == "('first', 'second', 'second')\n"


async def test_a_history_that_cannot_be_sent_changes_nothing(open_repl: OpenREPL) -> None:
    repl = await open_repl("first")
    with pytest.raises(TypeError, match="not JSON serializable"):
        await repl.extend(contexts("second"), [[{"role": "user", "content": object()}]])  # type: ignore[typeddict-item]
    assert (await repl.execute("context, history")).stdout == "('first', [])\n"
    await repl.execute("import os; os._exit(1)")
    assert (await repl.execute("context, history")).stdout == "('first', [])\n"


async def test_an_extension_waits_for_the_running_cell_and_cells_wait_for_it(open_repl: OpenREPL) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        asked.set()
        await go.wait()
        return [QueryReply("answered")]

    repl = await open_repl("first", on_query=answer)
    running = asyncio.create_task(repl.execute("r = llm_query('x'); 'context_1' in globals(), context"))
    await asked.wait()
    extending = asyncio.create_task(repl.extend([Context("s" * 5_000_000)]))
    await asyncio.sleep(0)
    later = asyncio.create_task(repl.execute("len(context)"))
    go.set()
    assert (await running).stdout == "(False, 'first')\n"
    await extending
    assert (await later).stdout == "5000000\n"


async def test_an_extension_arrives_although_its_caller_is_cancelled(open_repl: OpenREPL) -> None:
    repl = await open_repl("first")
    task = asyncio.create_task(repl.extend([Context("second " * 10_000_000)]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await repl.execute("context_0, len(context_1)")).stdout == "('first', 70000000)\n"


async def test_threads_of_the_code_can_query_during_an_extension(open_repl: OpenREPL) -> None:
    repl = await open_repl("first", tools=Toolbox.of({"double": lambda x: 2 * x}))
    await repl.execute(
        "import threading\nbad, stop = [], []\n"
        "def ask():\n"
        "    n = 0\n"
        "    while not stop:\n"
        "        n += 1\n"
        "        try:\n"
        "            if (double(n), llm_query(str(n))) != (2 * n, f'llm:{n}'): bad.append(n)\n"
        "        except BaseException as error: bad.append(error)\n"
        "threads = [threading.Thread(target=ask) for _ in range(4)]\n"
        "for t in threads: t.start()"
    )
    for number in range(5):
        await repl.extend([Context(f"number {number} " * 300_000)])
    result = await repl.execute(
        "stop.append(1)\nfor t in threads: t.join()\nbad, context_5 == context, context[:8]"
    )
    assert result.stdout == "([], True, 'number 4')\n"


async def test_large_contexts_do_not_block_the_event_loop(open_repl: OpenREPL) -> None:
    repl = await open_repl()
    text = "The quick brown fox jumps over the lazy dog, é.\n" * 2_100_000
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await repl.extend([Context(text)])
    ticker.cancel()
    assert ticks > 100
    code = "import hashlib; len(context), hashlib.sha256(context.encode()).hexdigest()"
    assert (await repl.execute(code)).stdout == f"({len(text)}, '{Context(text).sha256}')\n"


async def test_a_fresh_worker_gets_hundreds_of_contexts(open_repl: OpenREPL) -> None:
    # The kernel passes fewer descriptors than that with one message.
    repl = await open_repl(*[f"number {number}" for number in range(300)])
    await repl.extend(contexts(*[f"number {number}" for number in range(300, 500)]))
    code = "[globals()[f'context_{n}'] for n in range(500)] == [f'number {n}' for n in range(500)], context"
    assert (await repl.execute(code)).stdout == "(True, 'number 499')\n"
    await repl.execute("import os; os._exit(1)")
    assert (await repl.execute(code)).stdout == "(True, 'number 499')\n"


async def test_tables_and_files_arrive_in_an_extension(open_repl: OpenREPL, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("é" * 1_000_000)
    frame = pd.DataFrame({"a": range(1000), "b": [f"row {n}" for n in range(1000)]})
    repl = await open_repl()
    await repl.extend(contexts(file, frame))
    result = await repl.execute(
        "len(context_0), type(context).__name__, context['a'].sum(), context['b'][999]"
    )
    assert result.stdout == "(1000000, 'DataFrame', np.int64(499500), 'row 999')\n"


async def test_a_repl_can_be_closed_during_an_extension(open_repl: OpenREPL) -> None:
    repl = await open_repl("x")
    task = asyncio.create_task(repl.extend([Context("long " * 20_000_000)]))
    await asyncio.sleep(0)
    await repl.close()
    await task
    with pytest.raises(REPLError, match="the REPL is closed"):
        await repl.execute("1")


@pytest.mark.parametrize("frame", [FromWorker.EXTENDED, FromWorker.PIECE])
async def test_a_frame_of_an_extension_that_does_not_happen_disturbs_the_stream(frame: bytes) -> None:
    from rlm.repl.worker.protocol import frames, messages

    lie = frames.pack(frame, messages.dump({"error": None, "id": 1, "context": 0}))
    session = await Session.open(Liar(lie), SessionSpec(), no_queries)
    assert "disturbed" in str((await session.execute("1")).error)
    await session.close()
