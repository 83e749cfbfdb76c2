"""Whole programs that use the engine: the processes that they leave, and the modules that they load."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

SCRIPT = """
import sys
from rlm import RLM
from rlm.testing import ScriptedClient
sleep = "llm_query('runs'); import time; time.sleep(600)"
code = "print(1)" if sys.argv[1] == "answer" else sleep
def policy(request):
    if request.text == "runs":
        print("cell runs", flush=True)
        return "ok"
    if request.turn:
        return "```repl\\nanswer.update(content='done', ready=True)\\n```"
    return f"```repl\\n{code}\\n```"
try:
    with RLM(client=ScriptedClient(policy)) as rlm:
        print(rlm.completion(sys.argv[2], "What?").response, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def start(what: str, argument: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, what, argument]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_a_script_ends_without_leaving_processes_or_warnings() -> None:
    with start("answer", "some text") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "done\n", "")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_script_leaves_no_process(signum: signal.Signals) -> None:
    with start("sleep", "some text") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "cell runs\n"
        children = family(process)
        assert children
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    if signum == signal.SIGINT:
        assert (process.returncode, out, err) == (0, "interrupted\n", "")
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


NOTEBOOK = """
import asyncio, signal, sys, types
from rlm import RLM
from rlm.testing import ScriptedClient
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
async def never(request):
    print("asked", flush=True)
    await asyncio.Event().wait()
async def cell():
    with RLM(client=ScriptedClient(never)) as rlm:
        await rlm.acompletion("text", "What?")
loop = asyncio.new_event_loop()
task = loop.create_task(cell())
signal.signal(signal.SIGINT, lambda *_: task.cancel())
try:
    loop.run_until_complete(task)
except asyncio.CancelledError:
    print("interrupted", flush=True)
loop.close()
"""


def test_a_notebook_cell_that_awaits_can_be_interrupted() -> None:
    """As in ipykernel: a signal handler cancels the task, and nothing wakes the event loop."""
    command = [sys.executable, "-W", "error", "-c", NOTEBOOK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")


def test_importing_the_engine_loads_nothing_heavy() -> None:
    code = "import sys, rlm; print([m for m in ('aiohttp', 'rich', 'pydantic', 'verifiers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
