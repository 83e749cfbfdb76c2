"""Checkpoints: after a cell that was killed, or whose worker died, the namespace is as it was before that cell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlm.context import Context
from rlm.environments import REPL, Query, QueryReply, REPLSettings
from rlm.environments.isolation import Isolation
from rlm.errors import ConfigError
from rlm.repl.tools import Toolbox
from rlm.repl.worker.protocol.kinds import Mailbox

from .conftest import LEVELS, find

OpenREPL = Callable[..., Awaitable[REPL]]
OpenWatched = Callable[[], Awaitable[tuple[REPL, list[psutil.Process]]]]

DEAF = "\nsum(range(10**12))"
AS_IT_WAS = "; the namespace is as it was before this cell"
LOST = "; the namespace is lost and a fresh one has the contexts again"


@pytest.fixture(params=LEVELS)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Checkpoints work at every level."""
    level: Isolation = request.param
    return level


@pytest.fixture
def open_repl(open_repl: OpenREPL) -> OpenREPL:
    """Opens a REPL that makes a checkpoint after each cell, however soon the next one comes."""

    async def open_one(*contexts: Any, **spec: Any) -> REPL:
        return await open_repl(*contexts, **{"checkpoint_after": 0.0, **spec})

    return open_one


async def printed(repl: REPL, code: str) -> str:
    result = await repl.execute(code)
    assert result.status == "ok", result.stderr
    return result.stdout


async def lose(repl: REPL, code: str = "import os; os._exit(5)") -> str:
    """Runs a cell that ends its worker. Returns the error."""
    if code.endswith(DEAF):
        await repl.execute("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); None")
    result = await repl.execute(code, timeout=0.1 if code.endswith(DEAF) else None)
    assert result.status in ("killed", "died"), result
    assert result.error is not None
    assert result.stderr.endswith(result.error + "\n")
    return result.error


@pytest.fixture
def open_watched(open_repl: OpenREPL) -> OpenWatched:
    """Opens a REPL that finds its checkpoints: each query adds the new ones to the list, and is answered with their ids."""

    async def open_one() -> tuple[REPL, list[psutil.Process]]:
        found: list[psutil.Process] = []

        async def answer(query: Query) -> list[QueryReply]:
            here = [
                process
                for process in parent.children(recursive=True)
                if process not in (worker, *found) and place(process) == home
            ]
            found.extend(here)
            return [QueryReply(" ".join(str(number(process)) for process in here))]

        repl = await open_repl("the context", on_query=answer)
        (worker,) = await find(repl, "os.getpid()")
        parent, home = psutil.Process(worker.ppid()), place(worker)
        return repl, found

    return open_one


def place(process: psutil.Process) -> tuple[str, str]:
    """What only a worker and its checkpoints have in common: the working directory and the pid namespace."""
    links = Path(f"/proc/{process.pid}/cwd"), Path(f"/proc/{process.pid}/ns/pid")
    return str(links[0].readlink()), str(links[1].readlink())


def number(process: psutil.Process) -> int:
    """The id of a process in its own pid namespace."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])


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


async def test_the_namespace_survives_several_losses_in_a_row(repl: REPL) -> None:
    await repl.execute("x = 0")
    for number in range(1, 4):
        assert (await lose(repl)).endswith(AS_IT_WAS)
        assert (await lose(repl, "x = 100" + DEAF)).endswith(AS_IT_WAS)
        assert await printed(repl, "x += 1; print(x)") == f"{number}\n"


async def test_a_checkpoint_has_what_failed_and_interrupted_cells_did(repl: REPL) -> None:
    await repl.execute("x = 1; 1 / 0")
    assert (await repl.execute("y = 2\nwhile True: pass", timeout=0.1)).status == "interrupted"
    await repl.execute("import sys; z = 3; sys.exit()")
    await lose(repl)
    assert await printed(repl, "print(x, y, z)") == "1 2 3\n"


async def test_cells_without_a_pause_between_them_are_lost_together(open_repl: OpenREPL) -> None:
    repl = await open_repl("first", checkpoint_after=60.0)
    await repl.extend([Context("second")])
    await repl.execute("x = 1")
    assert (await lose(repl)).endswith("; the namespace is as it was before the last 2 cells")
    assert await printed(repl, "print('x' in globals(), context_0, context)") == "False first second\n"
    await repl.extend([Context("third")])
    await repl.execute("y = 1")
    await repl.execute("z = 1")
    assert (await lose(repl)).endswith("; the namespace is as it was before the last 3 cells")
    assert await printed(repl, "print('y' in globals(), context_0, context)") == "False first third\n"


async def test_by_default_a_checkpoint_is_made_while_the_model_thinks(open_repl: OpenREPL) -> None:
    repl = await open_repl(checkpoint_after=REPLSettings().checkpoint_after)
    for number in range(40):
        await repl.execute(f"x = {number}")
        await asyncio.sleep(0.05 * number)
        if (await lose(repl)).endswith(AS_IT_WAS):
            break
    assert await printed(repl, "print(x)") == f"{number}\n"


_FORGE = f"""
import gc, socket, struct
(post,) = [thing._stream for thing in gc.get_objects() if type(thing).__name__ == "Post"]
for number in range(200):
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, 76, 1)  # SO_PASSPIDFD: each message brings a descriptor
    socket.send_fds(post, [struct.pack(">cQ", {Mailbox.CHECKPOINT!r}, 0)], [ours.fileno()])
    while not ours.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED): pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    theirs.send(b"x")
    ours.close(), theirs.close()
"""


async def test_forged_checkpoints_leak_no_descriptors(open_repl: OpenREPL) -> None:
    repl = await open_repl()

    def most() -> int:
        counts = [0]
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # an older checkpoint, which is ending
                counts.append(process.num_fds())
        return max(counts)

    await repl.execute("1")
    before = most()
    result = await repl.execute(_FORGE)
    if result.error is not None and "Protocol not available" in result.error:
        pytest.skip("this kernel has no SO_PASSPIDFD")
    assert result.status == "ok", result.stderr
    await repl.execute("1")
    assert most() < before + 50


async def test_a_loss_in_the_first_cell_gives_a_fresh_namespace(repl: REPL) -> None:
    assert (await lose(repl, "gone = 1\nimport os; os._exit(5)")).endswith(LOST)
    assert await printed(repl, "print(context, 'gone' in globals())") == "the context False\n"


async def test_queries_tools_and_output_work_after_a_loss(open_repl: OpenREPL) -> None:
    def double(n: int) -> int:
        return n * 2

    started = asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        if query.prompts[0] == "never":
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()  # the late answer below must not reach the next worker
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


async def test_processes_that_cells_started_end_with_the_worker(repl: REPL) -> None:
    await repl.execute("x = 1; import os, subprocess, time")
    daemon = (
        "read, write = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.setsid()\n"
        "        os.write(write, str(os.getpid()).encode())\n        time.sleep(1000)\n    os._exit(0)\n"
        "daemon = int(os.read(read, 20))\n"
    )
    await repl.execute("early = subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    await repl.execute(daemon)
    processes = await find(repl, "os.getpid()", "early.pid", "daemon")
    assert all(process.is_running() for process in processes)
    assert (await lose(repl, daemon + "os._exit(5)")).endswith(AS_IT_WAS)
    assert not any(process.is_running() for process in processes)
    assert await printed(repl, "print(x, early.poll() is None)") == "1 False\n"


async def test_a_checkpoint_does_not_hold_the_pipes_of_the_code_open(repl: REPL) -> None:
    await repl.execute("import os, subprocess\nread, write = os.pipe()\nx = 1")
    await repl.execute(
        "cat = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)"
    )
    assert await printed(repl, "print(cat.communicate('hello')[0])") == "hello\n"
    assert await printed(repl, "os.close(write); print(os.read(read, 1))") == "b''\n"
    await repl.execute(
        "cat = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)"
    )
    await lose(repl)
    # The new worker sees the end of the pipe from `cat`, which ended with the old worker.
    assert await printed(repl, "print(cat.stdout.read() == '', x)") == "True 1\n"


async def test_the_code_does_not_see_its_checkpoint(repl: REPL) -> None:
    code = (
        "import multiprocessing, os, signal\nsignal.signal(signal.SIGCHLD, lambda *_: seen.append(1)); seen = []\n"
        "assert multiprocessing.active_children() == []\n"
        "try:\n    print(os.wait())\nexcept ChildProcessError:\n    print('no child')"
    )
    for _ in range(3):
        assert await printed(repl, code) == "no child\n"
    assert await printed(repl, "print(seen)") == "[]\n"


async def test_code_that_kills_its_checkpoint_loses_the_namespace(open_watched: OpenWatched) -> None:
    repl, checkpoints = await open_watched()
    await repl.execute("import os; gone = 1")
    error = await lose(repl, "for pid in map(int, llm_query('').split()): os.kill(pid, 9)\nos._exit(5)")
    assert checkpoints
    assert error.endswith(LOST)
    assert await printed(repl, "print('gone' in globals(), context)") == "False the context\n"


async def test_a_checkpoint_that_the_code_stopped_is_resumed(open_watched: OpenWatched) -> None:
    repl, checkpoints = await open_watched()
    await repl.execute("import os; x = 1")
    error = await lose(repl, "for pid in map(int, llm_query('').split()): os.kill(pid, 19)\nos._exit(5)")
    assert checkpoints
    assert error.endswith(AS_IT_WAS)
    assert await printed(repl, "print(x)") == "1\n"


async def test_a_checkpoint_killed_before_it_is_resumed_loses_the_namespace(
    open_watched: OpenWatched,
) -> None:
    repl, checkpoints = await open_watched()
    await repl.execute("gone = 1")
    assert (await lose(repl, "llm_query(''); import os; os._exit(5)")).endswith(AS_IT_WAS)
    for process in checkpoints:
        process.kill()
    result = await repl.execute("print('gone' in globals(), context)")
    assert result.stdout == "False the context\n"
    assert result.stderr.startswith("note: ")
    assert "A fresh one has the contexts again" in result.stderr


@pytest.mark.parametrize("code", ["llm_query('')", "llm_query(''); import os; os._exit(5)"])
async def test_checkpoints_end_with_the_repl(open_watched: OpenWatched, code: str) -> None:
    repl, checkpoints = await open_watched()
    await repl.execute("x = 1")
    await repl.execute(code)
    await repl.execute("y = 1")
    await repl.execute(code)
    await repl.close()
    assert len(checkpoints) >= 2
    assert not any(process.is_running() for process in checkpoints)


async def test_further_contexts_are_there_after_a_loss(open_repl: OpenREPL) -> None:
    repl = await open_repl("first")
    await repl.execute("x = 1")
    await repl.extend([Context("second")])
    assert (await lose(repl)).endswith(AS_IT_WAS)
    assert await printed(repl, "print(x, context_0, context_1, context)") == "1 first second second\n"
    await lose(repl)
    await repl.extend([Context("third")], [[{"role": "user", "content": "q"}]], fresh_answer=True)
    assert (
        await printed(repl, "print(x, context_1, context, len(history), answer['content'])")
        == "1 second third 1 \n"
    )


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"checkpoint_bytes": 0}, "x = 1"),
        ({"checkpoint_bytes": 64 << 20}, "x = bytearray(b'x' * (100 << 20))"),
        (
            {},
            "import threading; gone = 1; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        ),
    ],
)
async def test_without_a_checkpoint_the_namespace_is_lost(
    open_repl: OpenREPL, spec: dict[str, int], code: str
) -> None:
    repl = await open_repl("the context", **spec)
    await repl.execute("gone = 1")
    await repl.execute(code)
    assert (await lose(repl)).endswith(LOST)
    assert await printed(repl, "print('gone' in globals(), context)") == "False the context\n"


async def test_a_namespace_that_fits_again_gets_a_checkpoint_again(open_repl: OpenREPL) -> None:
    repl = await open_repl(checkpoint_bytes=64 << 20)
    await repl.execute("x = 1; big = bytearray(b'x' * (100 << 20))")
    await repl.execute("del big")
    await lose(repl)
    assert await printed(repl, "print(x, 'big' in globals())") == "1 False\n"


async def test_random_numbers_continue_as_without_a_loss(open_repl: OpenREPL) -> None:
    drawn = []
    for kill in (False, True):
        repl = await open_repl(seed=7)
        await repl.execute("import random; random.random()")
        if kill:
            await lose(repl)
        drawn.append(await printed(repl, "print(random.random(), random.random())"))
    assert drawn[0] == drawn[1]


async def test_numpy_works_after_a_loss(repl: REPL) -> None:
    code = (
        "m = numpy.random.default_rng(0).random((300, 300)); print(round((m @ numpy.linalg.inv(m)).trace()))"
    )
    assert (await repl.execute("import numpy\n" + code)).stdout == "300\n"
    assert (await lose(repl)).endswith(AS_IT_WAS)
    assert await printed(repl, code) == "300\n"


async def test_tables_work_after_a_loss(repl: REPL) -> None:
    """By default an allocator of pyarrow, which pandas imports, has a thread. With a thread there is no checkpoint."""
    await repl.execute("import pandas, pyarrow; d = pandas.DataFrame({'a': range(5)})")
    for _ in range(2):
        assert (await lose(repl)).endswith(AS_IT_WAS)
        assert await printed(repl, "pyarrow.Table.from_pandas(d)['a'].to_pylist()") == "[0, 1, 2, 3, 4]\n"


async def test_thirty_repls_survive_losses_at_once(open_repl: OpenREPL) -> None:
    async def rollout(name: int) -> None:
        repl = await open_repl(f"context {name}", interrupt_grace=0.2)
        for number in range(3):
            result = await printed(repl, f"n = {number}; name = {name}; print(llm_query(f'{{name}} {{n}}'))")
            assert result == f"llm:{name} {number}\n"
            if (name + number) % 5 == 0:
                assert (await lose(repl, "n = 100" + DEAF)).endswith(AS_IT_WAS)
            else:
                assert (await lose(repl)).endswith(AS_IT_WAS)
            assert await printed(repl, "print(n, name, context)") == f"{number} {name} context {name}\n"

    await asyncio.gather(*(rollout(name) for name in range(30)))


async def test_invalid_checkpoint_settings_are_refused(open_repl: OpenREPL) -> None:
    with pytest.raises(ConfigError, match="checkpoint_bytes must be a whole number"):
        await open_repl(checkpoint_bytes=-1)
    with pytest.raises(ConfigError, match="checkpoint_after must be a number of seconds"):
        await open_repl(checkpoint_after=-1)
