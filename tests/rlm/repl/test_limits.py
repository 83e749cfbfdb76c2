"""A limit that is reached stops the work, and the session continues."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from rlm.environments import REPL, Query, QueryReply
from rlm.environments.isolation import Isolation
from rlm.errors import ConfigError, REPLError

from .conftest import LEVELS, find

OpenREPL = Callable[..., Awaitable[REPL]]


@pytest.fixture(params=LEVELS)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Every isolation of this machine."""
    level: Isolation = request.param
    return level


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import threading; threading.Event().wait()",
        "import subprocess; subprocess.run(['sleep', '1000'])",
        "import os; os.system('sleep 1000'); os.system('sleep 1000')",
        "import asyncio; asyncio.run(asyncio.sleep(1000))",
        "import asyncio; await asyncio.sleep(1000)",
        "import multiprocessing as m, time\nwith m.get_context('fork').Pool(2) as p: p.map(time.sleep, [1000, 1000])",
        "class Slow:\n    def __repr__(self):\n        while True: pass\nSlow()",
        "class Slow(Exception):\n    def __str__(self):\n        while True: pass\nraise Slow",
        "try:\n    while True: pass\nfinally:\n    while True: pass",
        "import queue; queue.Queue().get()",
        "import re; re.match('(a|a)*b', 'a' * 60)",
    ],
)  # fmt: skip
async def test_an_interrupted_cell_keeps_its_namespace_whatever_it_was_doing(
    open_repl: OpenREPL, code: str
) -> None:
    repl = await open_repl(interrupt_grace=2.0)
    await repl.execute("kept = 1")
    result = await repl.execute("started = 1\n" + code, timeout=0.2)
    assert result.status == "interrupted", result
    assert result.error == "interrupted after 0.2 s, the time limit of a cell"
    assert (await repl.execute("kept, started")).stdout == "(1, 1)\n"


@pytest.mark.parametrize(
    "code",
    [
        "sum(range(10**12))",
        "import time\nwhile True:\n    try:\n        while True: time.sleep(0.01)\n    except BaseException: pass",
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(1000)",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
async def test_a_cell_that_does_not_yield_is_killed(repl: REPL, code: str) -> None:
    await repl.execute("kept = 1; answer['content'] = 'kept'")
    result = await repl.execute("gone = 1\n" + code, timeout=0.1)
    assert result.status == "killed"
    assert result.error is not None
    assert "did not stop when it was interrupted" in result.error
    assert result.answer.content == "kept"
    after = await repl.execute("context, context_0, kept, 'gone' in globals(), answer['content']")
    assert after.stdout == "('the context', 'the context', 1, False, 'kept')\n"


async def test_a_kill_takes_the_whole_tree(repl: REPL) -> None:
    await repl.execute(
        "import os, subprocess, time\n"
        "plain = subprocess.Popen(['sleep', '1000'])\n"
        "own = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "read, write = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            os.write(write, str(os.getpid()).encode())\n"
        "            while True: time.sleep(1000)\n"
        "        os._exit(0)\n"
        "    os._exit(0)\n"
        "daemon = int(os.read(read, 20))"
    )
    processes = await find(repl, "plain.pid", "own.pid", "daemon")
    assert all(process.is_running() for process in processes)
    assert (await repl.execute("sum(range(10**12))", timeout=0.1)).status == "killed"
    assert not any(process.is_running() for process in processes)


async def test_background_processes_live_until_close(open_repl: OpenREPL) -> None:
    repl = await open_repl()
    code = "import subprocess\nchild = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    await repl.execute(code)
    (child,) = await find(repl, "child.pid")
    await repl.execute("1 / 0")
    assert child.status() != psutil.STATUS_ZOMBIE
    await repl.close()
    assert not child.is_running()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os._exit(5)", "ended with exit status 5"),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("import os; os.abort()", "ended by SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        ("import os; os.closerange(3, 65536)", "channel|descriptors|exit status 71"),
        ("import os; os.closerange(0, 65536)", "descriptors|exit status 71"),
        ("import os, signal; os.killpg(0, signal.SIGKILL)", "ended by SIGKILL"),
        ("import os; os.fork() or os._exit(0); os._exit(6)", "ended with exit status 6"),
        ("import os; os.execv('/bin/true', ['true'])", "ended with exit status 0"),
    ],
)  # fmt: skip
async def test_a_worker_that_dies_is_replaced(open_repl: OpenREPL, code: str, error: str) -> None:
    repl = await open_repl("the context", checkpoint_bytes=0)
    await repl.execute("gone = 1; answer['content'] = 'kept'")
    result = await repl.execute(code + "\nimport time; time.sleep(1000)")
    assert result.status == "died"
    assert result.error is not None
    assert any(part in result.error for part in error.split("|")), result.error
    assert "a fresh one has the contexts again" in result.error
    assert result.answer.content == "kept"
    after = await repl.execute("context, 'gone' in globals(), answer['content'], llm_query('x')")
    assert after.stdout == "('the context', False, 'kept', 'llm:x')\n"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_fork_server_that_is_killed_or_stopped_is_replaced(
    repl: REPL, open_repl: OpenREPL, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    monkeypatch.setattr("rlm.repl.remote.PONG_PATIENCE", 0.3)
    other = await open_repl("other", interrupt_grace=0.1)
    (worker,) = await find(other, "os.getpid()")
    parent = worker.parent()
    assert parent is not None
    cell = asyncio.create_task(other.execute("while True: pass", timeout=0.1))
    parent.send_signal(signum)
    assert (await cell).status == "died"
    _, alive = await asyncio.to_thread(psutil.wait_procs, [worker, parent], timeout=20)
    assert not alive
    result = await repl.execute("context")
    if result.status == "died":  # the host had not noticed the end yet
        assert "ended from outside" in str(result.error)
        result = await repl.execute("context")
    assert result.stdout == "'the context'\n"
    assert (await other.execute("context")).stdout == "'other'\n"


async def test_a_worker_that_dies_between_cells_is_replaced(repl: REPL) -> None:
    await repl.execute("kept = 1")
    (worker,) = await find(repl, "os.getpid()")
    worker.kill()
    result = await repl.execute("print(kept)")
    if result.status == "died":
        assert "SIGKILL" in str(result.error)
    else:
        assert result.stdout == "1\n"
        assert "between the cells" in result.stderr
        assert "SIGKILL" in result.stderr
    assert (await repl.execute("context")).stdout == "'the context'\n"


async def test_memory_is_limited(open_repl: OpenREPL) -> None:
    repl = await open_repl("the context", limits={"memory_bytes": 150 << 20})
    for code in (
        "x = bytearray(100 << 30)",
        "x = 'a' * (1 << 34)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "import mmap; x = mmap.mmap(-1, 100 << 30)",
        # Python needs memory to raise the error, and gets none.
        "x = []\nfor number in range(10**9): x.append({'number': number})",
        "x = []\nfor number in range(10**9): x.append([])",
        "x = 1\ndef f():\n    held = []\n    while True: held.append(str(len(held)))\nf()",
    ):
        for _ in range(2):  # the second time, no memory has been freed
            result = await repl.execute(code)
            assert result.status == "error", result
            assert result.error is not None
            assert result.error.startswith(("MemoryError", "OSError: [Errno 12]"))
        await repl.execute("x = None")
    assert (await repl.execute("context")).stdout == "'the context'\n"


async def test_code_that_catches_a_memory_error_continues(open_repl: OpenREPL) -> None:
    repl = await open_repl("the context", limits={"memory_bytes": 150 << 20})
    for _ in range(3):
        result = await repl.execute(
            "x = []\ntry:\n    while True: x.append(['a'])\nexcept MemoryError: print('caught')"
        )
        assert (result.status, result.stdout) == ("ok", "caught\n")
    assert (await repl.execute("len(x) > 1000, context")).stdout == "(True, 'the context')\n"
    assert (await repl.execute("x = None; y = bytes(50 << 20); len(y)")).stdout == f"{50 << 20}\n"


_MEMORY = 200 << 20
_TOO_HEAVY = "the processes of the code took more memory than they may have together, and were killed"


@pytest.mark.parametrize(
    "hold",
    [
        "held = [bytearray(1 << 20) for _ in range(100)]",
        # The kernel's limit on one process does not count shared memory.
        "import mmap; held = mmap.mmap(-1, 100 << 20); held[:] = bytes(100 << 20)",
        "import time\n    for _ in range(100): held.append(bytearray(1 << 20)); time.sleep(0.005)",
    ],
)
@pytest.mark.parametrize("isolation", LEVELS)
async def test_memory_is_limited_for_all_processes_together(open_repl: OpenREPL, hold: str) -> None:
    repl = await open_repl("the context", limits={"memory_bytes": _MEMORY}, checkpoint_after=0.0)
    await repl.execute("import os; x = 1; held = []")
    result = await repl.execute(f"while os.fork() == 0:\n    held = []\n    {hold}\nos.wait()")
    assert (result.status, result.error) == (
        "died",
        f"{_TOO_HEAVY}; the namespace is as it was before this cell",
    )
    after = await repl.execute("x, context")
    assert after.stdout == "(1, 'the context')\n", after


@pytest.mark.parametrize("isolation", LEVELS)
async def test_memory_that_processes_share_counts_once(open_repl: OpenREPL) -> None:
    repl = await open_repl(limits={"memory_bytes": _MEMORY}, checkpoint_bytes=0)
    result = await repl.execute(
        "import os, time\nheld = bytearray(150 << 20)\nread, write = os.pipe()\n"
        "for _ in range(4):\n    if os.fork() == 0: os.close(write); os.read(read, 1); os._exit(held[-1])\n"
        "time.sleep(1)  # time enough for the fork server to measure the memory\n"
        "os.close(write); [os.wait()[1] for _ in range(4)]"
    )
    assert result.stdout == "[0, 0, 0, 0]\n", result


async def test_stacks_of_threads_do_not_count_as_memory(open_repl: OpenREPL) -> None:
    repl = await open_repl(limits={"memory_bytes": 1 << 30})
    result = await repl.execute(
        "from concurrent.futures import ThreadPoolExecutor\nimport threading\nmeet = threading.Barrier(64)\n"
        "def work(i):\n    meet.wait(); return len('x' * 1000)\n"
        "with ThreadPoolExecutor(64) as pool: print(sum(pool.map(work, range(64))))"
    )
    assert result.stdout == "64000\n", result.stderr


async def test_processor_time_is_limited(open_repl: OpenREPL) -> None:
    repl = await open_repl("the context", limits={"cpu_seconds": 1})
    result = await repl.execute("while True: pass", timeout=30)
    assert result.status == "died"
    assert "processor time" in str(result.error)
    assert (await repl.execute("context")).stdout == "'the context'\n"


async def test_files_are_limited(open_repl: OpenREPL) -> None:
    repl = await open_repl(limits={"file_bytes": 1 << 20, "open_files": 64})
    assert "File too large" in str((await repl.execute("open('big', 'wb').write(bytes(2 << 20))")).error)
    many = await repl.execute("files = [open('/dev/null') for _ in range(100)]")
    assert "Too many open files" in str(many.error)
    assert (await repl.execute("1")).stdout == "1\n"


SIGNALS = """
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
sent = 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
while sent < 2000 and libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None) == 0:
    sent += 1
print(sent <= 256, errno.errorcode[ctypes.get_errno()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others do not count them for each user")
async def test_pending_signals_are_limited(repl: REPL) -> None:
    """The kernel limits them for all processes of a user together."""
    assert (await repl.execute(SIGNALS)).stdout == "True EAGAIN\n"


def order_of_ends(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such order")
async def test_the_kernel_ends_workers_before_the_host_when_memory_is_scarce(repl: REPL) -> None:
    """Neither the host nor the fork server ends for memory that the code took."""
    code = "import subprocess; subprocess.check_output('cat /proc/$$/oom_score_adj; cat /proc/self/oom_score_adj', shell=True)"
    assert (await repl.execute(code)).stdout == "b'1000\\n1000\\n'\n"
    (worker,) = await find(repl, "os.getpid()")
    parent = worker.parent()
    assert parent is not None
    assert order_of_ends(parent.pid) == order_of_ends(os.getpid())


async def test_a_crash_dumps_no_core(repl: REPL) -> None:
    result = await repl.execute("import resource; resource.getrlimit(resource.RLIMIT_CORE)")
    assert result.stdout == "(0, 0)\n"


async def test_a_context_larger_than_the_memory_limit_is_refused(open_repl: OpenREPL) -> None:
    with pytest.raises(REPLError, match="memory_bytes"):
        await open_repl("x" * (200 << 20), limits={"memory_bytes": 100 << 20})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"limits": {"memory": 1}}, "no limit 'memory'; there are memory_bytes"),
        ({"limits": {"memory_bytes": 0}}, "must be a positive whole number"),
        ({"limits": {"memory_bytes": 1e9}}, "must be a positive whole number"),
        ({"limits": {"file_bytes": 1 << 64}}, "must be a positive whole number"),
        ({"cell_timeout": 0}, "cell_timeout"),
        ({"interrupt_grace": float("nan")}, "interrupt_grace"),
        ({"max_output_chars": 5}, "max_output_chars"),
    ],
)
async def test_settings_that_do_not_fit_are_refused(
    open_repl: OpenREPL, spec: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await open_repl(**spec)


async def test_the_session_has_a_time_limit_and_a_cell_a_shorter_one(open_repl: OpenREPL) -> None:
    repl = await open_repl(cell_timeout=0.2)
    assert "after 0.2 s" in str((await repl.execute("while True: pass")).error)
    assert "after 0.1 s" in str((await repl.execute("while True: pass", timeout=0.1)).error)
    assert "after 0.2 s" in str((await repl.execute("while True: pass", timeout=100)).error)
    endless = await open_repl(cell_timeout=None)
    assert (await endless.execute("1")).status == "ok"


async def test_a_cancelled_caller_stops_the_cell_first(open_repl: OpenREPL) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def never(query: Query) -> list[QueryReply]:
        if query.prompts == ["quick"]:
            return [QueryReply("answered")]
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    repl = await open_repl("x", on_query=never)
    cell = asyncio.create_task(repl.execute("kept = 1\nllm_query('x')"))
    await asked.wait()
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    assert cancelled.is_set()
    assert (await repl.execute("kept, llm_query('quick')")).stdout == "(1, 'answered')\n"


async def test_a_caller_that_is_cancelled_twice_does_not_wait(open_repl: OpenREPL) -> None:
    asked = asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        asked.set()
        return [QueryReply("go")]

    repl = await open_repl("x", on_query=answer, interrupt_grace=30.0)
    cell = asyncio.create_task(repl.execute("llm_query('x')\nsum(range(10**12))"))
    await asked.wait()
    cell.cancel()
    await asyncio.sleep(0)
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    assert (await repl.execute("context")).stdout == "'x'\n"


async def test_cells_run_one_at_a_time(repl: REPL) -> None:
    results = await asyncio.gather(*(repl.execute(f"x = {n}; llm_query('w'); print(x)") for n in range(10)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(10)]


async def test_close_ends_the_running_cell(open_repl: OpenREPL) -> None:
    asked = asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        asked.set()
        return [QueryReply("go")]

    repl = await open_repl(on_query=answer)
    cell = asyncio.create_task(repl.execute("llm_query('x')\nsum(range(10**12))"))
    await asked.wait()
    await asyncio.gather(repl.close(), repl.close())
    result = await cell
    assert (result.status, result.error) == ("killed", "the REPL was closed")
    with pytest.raises(REPLError, match="closed"):
        await repl.execute("1")
    await repl.close()


async def test_the_environment_is_scrubbed(open_repl: OpenREPL, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fork server may have started before: the test checks the variables that it got.
    repl = await open_repl()
    result = await repl.execute("import os\nprint(*sorted(os.environ))")
    allowed = {
        "PATH",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "LD_LIBRARY_PATH",
        "HOME",
        "TMPDIR",
        "PYTHONHASHSEED",
        "JE_ARROW_MALLOC_CONF",
    }
    assert set(result.stdout.split()) <= allowed
    initial = await repl.execute("print(open('/proc/self/environ').read())")
    assert "KEY" not in initial.stdout
    assert str(Path.home()) not in result.stdout
    assert os.environ.get("HOME", "none") not in (await repl.execute("os.environ['HOME']")).stdout
