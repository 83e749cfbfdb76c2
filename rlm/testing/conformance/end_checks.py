"""Checks of the ends of cells and REPLs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path

from rlm.context import Context
from rlm.errors import REPLError
from rlm.repl.interface import Query, QueryReply
from rlm.testing.conformance.bench import (
    Bench,
    ConformanceError,
    check,
    ends,
    expect,
    shows,
)

# time limits


@check()
async def an_interrupted_cell_keeps_the_namespace(bench: Bench) -> None:
    repl = await bench.open(interrupt_grace=10.0 * bench.pace)
    await repl.execute("kept = 1")
    for code in ("while True: pass", "import time\nwhile True: time.sleep(0.01)"):
        await ends(repl, f"started = 2\n{code}", "interrupted", "the time limit of a cell", 0.3 * bench.pace)
        await shows(repl, "kept, started", "(1, 2)\n")


@check()
async def an_interrupt_cancels_the_query_in_flight(bench: Bench) -> None:
    cancelled = asyncio.Event()

    async def wait(query: Query) -> list[QueryReply]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    repl = await bench.open(on_query=wait, interrupt_grace=10.0 * bench.pace)
    await ends(repl, "kept = 1\nllm_query('x')", "interrupted", timeout=0.5 * bench.pace)
    expect("the query was cancelled", cancelled.is_set(), True)
    await shows(repl, "kept", "1\n")


@check()
async def the_caller_interrupts_with_a_reason(bench: Bench) -> None:
    repl = await bench.open(stop_grace=10.0 * bench.pace)
    running = asyncio.create_task(repl.execute("while True: pass"))
    await asyncio.sleep(0.3 * bench.pace)
    repl.interrupt("the budget is spent")
    result = await running
    reason = str(result.error).endswith(": the budget is spent")
    expect(str(result.error), (result.status, reason), ("interrupted", True))
    repl.interrupt("no cell runs")
    await shows(repl, "1", "1\n")


@check()
async def a_cancelled_caller_stops_its_cell(bench: Bench) -> None:
    repl = await bench.open(stop_grace=10.0 * bench.pace)
    await repl.execute("count = 0")
    running = asyncio.create_task(repl.execute("while True: count += 1"))
    await asyncio.sleep(0.3 * bench.pace)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await shows(repl, "count > 0", "True\n")


# kills


@check("processes")
async def code_that_does_not_yield_is_killed(bench: Bench) -> None:
    repl = await bench.open("the context", interrupt_grace=0.5 * bench.pace, checkpoint_bytes=0)
    await repl.execute(
        "gone = 1; answer['content'] = 'kept'\n"
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); print(child.pid)"
    )
    result = await repl.execute("print(child.pid, flush=True)\nsum(range(10**12))", timeout=1.0 * bench.pace)
    expect(str(result.error), (result.status, result.answer.content), ("killed", "kept"))
    await shows(repl, "context, 'gone' in globals(), answer['content']", "('the context', False, 'kept')\n")
    pid = int(result.stdout.split()[0])
    code = f"import os\ntry: os.kill({pid}, 0)\nexcept ProcessLookupError: print('it has ended')"
    await shows(repl, code, "it has ended\n")


@check("processes")
async def a_worker_that_dies_is_replaced(bench: Bench) -> None:
    repl = await bench.open("the context", checkpoint_bytes=0)
    for code in (
        "import os; os._exit(5)",
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ):
        await ends(repl, f"gone = 1\n{code}\nimport time; time.sleep(1000)", "died")
        await shows(repl, "context, 'gone' in globals(), llm_query('x')", "('the context', False, 'llm:x')\n")


@check("processes", "checkpoints")
async def a_killed_cell_costs_only_its_own_changes(bench: Bench) -> None:
    repl = await bench.open("the context", interrupt_grace=0.3 * bench.pace, checkpoint_after=0.0)
    await repl.execute("kept = [1]; answer['content'] = 'kept'")
    await ends(
        repl, "kept.append(2)\nsum(range(10**12))", "killed", "the namespace is as it was", 0.3 * bench.pace
    )
    await shows(repl, "context, kept", "('the context', [1])\n")


@check("processes", "limits")
async def memory_is_limited(bench: Bench) -> None:
    repl = await bench.open("the context", limits={"memory_bytes": 300 << 20})
    await ends(repl, "kept = 1\nx = bytearray(1 << 30)", "error", "MemoryError")
    await shows(repl, "kept, context", "(1, 'the context')\n")


# the end


@check()
async def a_closed_repl_refuses_cells_and_contexts(bench: Bench) -> None:
    repl = await bench.open()
    await repl.close()
    await repl.close()
    for what, attempt in (("run a cell", repl.execute("1")), ("took a context", repl.extend([Context("x")]))):
        try:
            await attempt
        except REPLError:
            continue
        raise ConformanceError(f"a closed REPL {what}; expected: REPLError")


@check()
async def closing_ends_the_cell_that_runs(bench: Bench) -> None:
    repl = await bench.open()
    running = asyncio.create_task(repl.execute("import time\nwhile True: time.sleep(0.01)"))
    await asyncio.sleep(0.3 * bench.pace)
    async with asyncio.timeout(5 * bench.pace):
        await repl.close()
        result = await running
    expect("the status of the cell", result.status, "killed")


@check("processes")
async def closing_leaves_no_process(bench: Bench) -> None:
    """Finds processes on this machine only: nothing is checked of a place that runs elsewhere."""
    mark = f"rlm-conformance-{secrets.token_hex(8)}"
    repl = await bench.open()
    await shows(
        repl,
        "import subprocess, sys\n"
        f"command = [sys.executable, '-c', 'import time; time.sleep(1000)', '{mark}']\n"
        "children = [subprocess.Popen(command, start_new_session=new) for new in (False, True)]",
        "",
    )
    await repl.close()
    left = _processes(mark)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10 * bench.pace):
            while left:
                await asyncio.sleep(0.1)  # the kernel may need longer than `close`
                left = _processes(mark)
    expect("the processes that a closed REPL left", left, [])


def _processes(mark: str) -> list[str]:
    """The ids of the processes with `mark` in their command line, where the system lists them in /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
