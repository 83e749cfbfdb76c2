"""Connection pools: shared by the clients of a loop, closed with the loop, and without warnings however the loop ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from rlm.clients.openai import OpenAIClient
from rlm.clients.pool import open_pools
from rlm.testing import ModelServer, Script, serve
from rlm.types import Message

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
ROOT = Path(__file__).parents[3]


async def test_batches_and_clients_share_connections() -> None:
    async with ModelServer(Script(["a"])) as server:
        for key in ("one", "two", "three"):
            client = OpenAIClient("scripted", base_url=server.base_url, api_key=key)
            await asyncio.gather(*(client.complete(HELLO) for _ in range(50)))
        assert len(server.requests) == 150
        assert server.connections <= 50


async def test_successive_calls_use_one_connection() -> None:
    async with ModelServer(Script(["a"])) as server:
        for _ in range(10):
            await OpenAIClient("scripted", base_url=server.base_url).complete(HELLO)
        assert server.connections == 1


async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async with ModelServer(Script(["a"])) as server:
        client = OpenAIClient("scripted", base_url=server.base_url, retry_delay=0.001)
        await client.complete(HELLO)
        port = server.port
    async with ModelServer(Script(["b"]), port=port):
        assert (await client.complete(HELLO)).content == "b"


def test_successive_event_loops_leak_nothing() -> None:
    with serve(Script(["a"])) as server:
        client = OpenAIClient("scripted", base_url=server.base_url)

        async def talk() -> None:
            await asyncio.gather(*(client.complete(HELLO) for _ in range(3)))
            assert open_pools() == 1

        asyncio.run(talk())
        descriptors = psutil.Process().num_fds()
        for _ in range(10):
            asyncio.run(talk())
            assert open_pools() == 0
    # The server may close its side later; each loop had 3 connections.
    assert psutil.Process().num_fds() <= descriptors


def test_each_threads_event_loop_has_its_own_pool() -> None:
    with serve(Script(["a"])) as server:
        client = OpenAIClient("scripted", base_url=server.base_url)
        contents: list[str] = []

        def work() -> None:
            async def talk() -> None:
                replies = await asyncio.gather(*(client.complete(HELLO) for _ in range(10)))
                contents.extend(reply.content for reply in replies)

            asyncio.run(talk())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert contents == ["a"] * 40
    assert open_pools() == 0


HEAD = """
import asyncio, os, sys, threading, psutil
from rlm.clients.openai import OpenAIClient
from rlm.clients.pool import open_pools
client = OpenAIClient("scripted", base_url=sys.argv[1])
def established():
    return sum(c.status == "ESTABLISHED" for c in psutil.Process().net_connections(kind="tcp"))
async def talk():
    replies = await asyncio.gather(*(client.complete([{"role": "user", "content": "x"}]) for _ in range(5)))
    assert [r.content for r in replies] == ["a"] * 5
"""

ENDS = {
    "asyncio.run, several times": "for _ in range(3): asyncio.run(talk())\nassert open_pools() == 0",
    "calls in flight are cancelled": """
async def main():
    await talk()
    asyncio.create_task(client.complete([{"role": "user", "content": "x"}]))
    await asyncio.sleep(0)
asyncio.run(main())
""",
    "an exception ends the run": """
async def main():
    await talk()
    raise KeyError
try:
    asyncio.run(main())
except KeyError:
    pass
""",
    "the process ends while a daemon thread's loop runs": """
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(talk(), loop).result()
""",
    "the loop is closed without shutdown_asyncgens": """
loop = asyncio.new_event_loop()
loop.run_until_complete(talk())
loop.close()
""",
    "the loop is never closed": """
loop = asyncio.new_event_loop()
loop.run_until_complete(talk())
""",
    "a forked child goes its own way": """
loop = asyncio.new_event_loop()
loop.run_until_complete(talk())
child = os.fork()
if child == 0:
    assert open_pools() == 0
    assert established() == 0
    asyncio.run(talk())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert (open_pools(), established()) == (1, 5)
loop.run_until_complete(talk())
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
""",
}


def run_script(script: str, url: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", HEAD + script, url],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("end", ENDS)
def test_a_pool_ends_without_warnings(end: str) -> None:
    with serve(Script(["a"])) as server:
        # -X dev shows ResourceWarnings; asyncio's debug mode, which is part of it, also reports slow steps.
        stderr = run_script(ENDS[end], server.base_url, "-X", "dev", "-W", "always")
        # Five concurrent calls open five connections in each loop of each process.
        loops = {"asyncio.run, several times": 3, "a forked child goes its own way": 2}.get(end, 1)
        assert server.connections <= 5 * loops
    assert [line for line in stderr.splitlines() if not line.startswith("Executing ")] == []


def test_the_pool_of_a_closed_loop_is_dropped() -> None:
    script = """
import gc
gc.disable()  # so that only explicit clean-up counts
for _ in range(3):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(talk())
    loop.close()  # without shutdown_asyncgens
    assert (open_pools(), established()) == (1, 5)
asyncio.run(talk())
assert (open_pools(), established()) == (0, 0)
"""
    with serve(Script(["a"])) as server:
        assert run_script(script, server.base_url) == ""


def test_importing_rlm_does_not_import_aiohttp() -> None:
    script = "import rlm, rlm.clients, rlm.testing, sys; print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=50, check=True
    )
    assert done.stdout.strip() == "False"
