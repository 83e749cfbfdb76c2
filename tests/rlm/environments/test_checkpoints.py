"""State that survives: after a cell that had to be killed, or whose worker died, the namespace is as it was before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from rlm.environments import REPL, CellResult, Query, QueryReply
from rlm.environments.isolation import Isolation
from rlm.tools import Toolbox

from .conftest import LEVELS

OpenREPL = Callable[..., Awaitable[REPL]]
Run = Callable[[str], Awaitable[CellResult]]

DEAF = "\nsum(range(10**12))"
AS_IT_WAS = "; the namespace is as it was before this cell"
LOST = "; the namespace is lost and a fresh one has the contexts again"


@pytest.fixture(params=LEVELS)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """State survives at all levels."""
    level: Isolation = request.param
    return level


async def printed(repl: REPL, code: str) -> str:
    result = await repl.execute(code)
    assert result.status == "ok", result.stderr
    return result.stdout


async def lose(repl: REPL, code: str = "import os; os._exit(5)") -> str:
    """Runs a cell that ends its worker. Returns the error."""
    result = await repl.execute(code, timeout=0.1 if code.endswith(DEAF) else None)
    assert result.status in ("killed", "died"), result
    assert result.error is not None
    assert result.stderr.endswith(result.error + "\n")
    return result.error


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (DEAF, "did not stop when it was interrupted"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os._exit(5)", "exit status 5"),
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os, signal; os.killpg(0, signal.SIGKILL)", "SIGKILL"),
        ("import os; os.execv('/bin/false', ['false'])", "exit status 1"),
        ("import os, resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 9))\nwhile True: pass", "processor time"),
        ("import os, threading\nthreading.Thread(target=os._exit, args=[7]).start()\nwhile True: pass", "exit status 7"),
        ("import os; os.closerange(0, 65536)", "exit status 7|descriptors"),
    ],
)  # fmt: skip
async def test_the_namespace_is_as_it_was_before_the_cell(repl: REPL, code: str, how: str) -> None:
    await repl.execute(
        "import math, collections\nfrom json import dumps as to_json\nx = [1]\n"
        "class A:\n    kind = 'a'\n    def get(self): return x\n"
        "a = A(); counter = (n for n in range(9)); next(counter)\n"
        "def add(n): x.append(n); return len(x)"
    )
    await repl.execute("add(2); same = x; answer['content'] = 'so far'; 7")
    error = await lose(
        repl, "gone = 1; add(3); A.kind = 'b'; next(counter); context = 'lost'; del math\n" + code
    )
    assert any(part in error for part in how.split("|")), error
    assert error.endswith(AS_IT_WAS)
    after = await printed(
        repl,
        "print(str(x), same is x, a.get() is x, A.kind, type(a) is A, next(counter), add(4), math.pi > 3, to_json(x), _,"
        " 'gone' in globals(), context, context_0, answer, sep=';')",
    )
    assert after == (
        "[1, 2];True;True;a;True;1;3;True;[1, 2, 4];7;False;the context;the context;{'content': 'so far', 'ready': False}\n"
    )


async def test_again_and_again(repl: REPL) -> None:
    await repl.execute("x = 0")
    for number in range(1, 4):
        assert (await lose(repl)).endswith(AS_IT_WAS)
        assert (await lose(repl, "x = 100" + DEAF)).endswith(AS_IT_WAS)
        assert await printed(repl, "x += 1; print(x)") == f"{number}\n"


async def test_a_cell_that_failed_or_was_interrupted_counts(repl: REPL) -> None:
    await repl.execute("x = 1; 1 / 0")
    assert (await repl.execute("y = 2\nwhile True: pass", timeout=0.1)).status == "interrupted"
    await repl.execute("import sys; z = 3; sys.exit()")
    await lose(repl)
    assert await printed(repl, "print(x, y, z)") == "1 2 3\n"


async def test_the_first_cell_has_nothing_to_lose(repl: REPL) -> None:
    assert (await lose(repl, "gone = 1\nimport os; os._exit(5)")).endswith(LOST)
    assert await printed(repl, "print(context, 'gone' in globals())") == "the context False\n"


async def test_queries_tools_and_outputs_go_on(open_repl: OpenREPL) -> None:
    def double(n: int) -> int:
        return n * 2

    started = asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        if query.prompts[0] == "never":
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()  # an answer that comes late is not for the next worker
        return [QueryReply(f"to {prompt}") for prompt in query.prompts]

    history = [[{"role": "user", "content": "before"}]]
    repl = await open_repl(
        "x", on_query=answer, tools=Toolbox.of({"double": double}), history=history, interrupt_grace=0.3
    )
    await repl.execute("asked = llm_query('a'); import os, sys, threading")
    code = (
        "print('lost'); sys.stdout.flush(); os.system('echo lost too')\n"
        "t = threading.Thread(target=llm_query, args=['never'], daemon=True); t.start()\n"
        "llm_query('b'); print('at last', end='')\n"
    )
    cell = await repl.execute(
        code + "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [2]); sum(range(10**12))", timeout=0.3
    )
    assert cell.status == "killed"
    assert cell.stdout == "lost\nlost too\nat last"
    assert started.is_set()
    for number in range(3):
        result = await repl.execute(
            f"print(asked, llm_query('{number}'), double({number}), history[0][0]['content'])\n"
            "os.system('echo program'); os.write(2, b'raw'); print('error', file=sys.stderr)"
        )
        assert result.stdout == f"to a to {number} {number * 2} before\nprogram\n0\n".replace("\n0\n", "\n")
        assert sorted(result.stderr.replace("raw", "raw\n").split()) == ["error", "raw"]
    assert "".join(await asyncio.gather(*(printed(repl, f"print({n})") for n in range(3)))) == "0\n1\n2\n"
