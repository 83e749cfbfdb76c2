"""Measurements of whole rollouts: in process, beside a bare fork, and over HTTP, beside the peer."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.floor import Floor
from benchmarks.measure import Samples, TableRow, repeat
from benchmarks.scripted_policy import BATCH, CALLS, FIVE_TURNS, ONE_TURN, SEQUENCE, policy
from rlm import RLM
from rlm.clients.base import Client, ModelReply
from rlm.errors import TimeoutExceededError
from rlm.testing import ChatRequest, ScriptedClient, repl_block
from rlm.types import Message, SamplingArgs, Usage

_LATENCY = 0.05


async def measure() -> list[TableRow]:
    """Measures one turn, sub-calls, batches, many rollouts at once, and the end at a limit."""
    with Floor() as floor, Floor(sandboxed=True) as sandboxed:
        rows = [
            await _one_turn(sandboxed),
            await _sequence(floor),
            *[await _batch(floor, seconds) for seconds in (0.0, _LATENCY)],
            *[await _many(sandboxed, rollouts) for rollouts in (64, 512)],
        ]
    rows += [await _stop(what) for what in _STOPPED]
    with http_servers() as urls:
        return [*rows, *await _over_http(urls)]


@contextlib.contextmanager
def http_servers() -> Iterator[tuple[str, str]]:
    """Starts two model servers with a latency of 0 ms and of 50 ms, each in its own process, and gives their URLs."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(http_server(latency)) for latency in (0.0, _LATENCY)]
        yield urls[0], urls[1]


@contextlib.contextmanager
def http_server(latency: float) -> Iterator[str]:
    """Starts a model server in its own process, and gives its URL.

    Args:
        latency: seconds that each reply takes.
    """
    command = [
        sys.executable,
        "-m",
        "rlm.testing",
        "benchmarks.scripted_policy:policy",
        "--latency",
        str(latency),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


class _Client(Client):
    """The policy as a client without HTTP, so that only the engine is measured."""

    model = "scripted"

    def __init__(self, latency: float, sub_latency: float) -> None:
        self._latency, self._sub_latency = latency, sub_latency
        self._sub = ModelReply("ok", self.model, Usage(1, 1))

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        is_sub = len(messages) == 1
        if seconds := self._sub_latency if is_sub else self._latency:
            await asyncio.sleep(seconds)
        if is_sub:
            return self._sub
        return ModelReply(
            policy(ChatRequest([dict(m) for m in messages], self.model)), self.model, Usage(1, 1)
        )


def _engine(latency: float, sub_latency: float = 0.0) -> RLM:
    return RLM(client=_Client(latency, sub_latency), max_concurrent_queries=1000)


async def _complete(rlm: RLM, question: str) -> None:
    completion = await rlm.acompletion("x" * 1000, question)
    assert completion.response == "done", completion.error


async def _echo(prompt: str) -> str:
    return prompt


async def _one_turn(floor: Floor) -> TableRow:
    rlm = _engine(0.0)
    ours, least = Samples(), Samples()

    async def engine() -> None:
        with ours.time():
            await _complete(rlm, ONE_TURN)

    async def bare() -> None:
        with least.time():
            repl = await floor.open(_echo)
            await repl.execute("x = 1")
            await repl.close()

    await repeat(40, engine, bare)
    return TableRow("one-turn rollout, model of 0 ms", "ms", ours.median, least.median)


async def _batch(floor: Floor, latency: float) -> TableRow:
    rlm = _engine(0.0, latency)
    ours, least = Samples(), Samples()

    async def model(prompt: str) -> str:
        await asyncio.sleep(latency)
        return "ok"

    async def engine() -> None:
        with ours.time():
            await _complete(rlm, BATCH)

    async def bare() -> None:
        with least.time():
            repl = await floor.open(model)
            await repl.execute("r = ask(['p'] * 1000)")
            await repl.close()

    await repeat(10, engine, bare)
    name = f"rollout with 1000 batched sub-calls, sub-model of {latency * 1000:.0f} ms"
    return TableRow(name, "ms", ours.median, least.median)


async def _sequence(floor: Floor) -> TableRow:
    """The time of one sub-call in a sequence of sub-calls."""
    rlm = _engine(0.0)
    ours, least = Samples(), Samples()

    async def engine() -> None:
        completion = await rlm.acompletion("x" * 1000, SEQUENCE)
        ours.values.append(float(completion.response))

    async def bare() -> None:
        repl = await floor.open(_echo)
        started = time.perf_counter()
        await repl.execute(f"for i in range({CALLS}): ask(['p'])")
        least.values.append((time.perf_counter() - started) * 1e3 / CALLS)
        await repl.close()

    await repeat(10, engine, bare)
    return TableRow("one sequential sub-call, model of 0 ms", "ms", ours.median, least.median)


_STOPPED = {
    "a cell": "while True: pass",
    "a cell in C code": "sum(range(10**12))",
    "a model call": "",
    "sub-calls two levels below": "rlm_query('x')",
}
"""The activity that runs when a limit is reached, and the code that starts it."""


async def _stop(what: str) -> TableRow:
    """The time from the moment of a limit to the end of the run and of all its processes."""
    limit = 0.5
    code = _STOPPED[what]

    async def model(request: ChatRequest) -> str:
        if what == "a model call" or request.is_subcall:
            await asyncio.sleep(60)
        return repl_block(code)

    samples = Samples()
    async with RLM(client=ScriptedClient(model), max_timeout=limit, max_depth=3) as rlm:
        for _ in range(10):
            started = time.perf_counter()
            with contextlib.suppress(TimeoutExceededError):
                await rlm.acompletion("the input", "Do it.")
            samples.values.append((time.perf_counter() - started - limit) * 1e3)
    return TableRow(f"from a time limit to the end of the run, {what}", "ms", samples.median)


async def _many(floor: Floor, rollouts: int) -> TableRow:
    rlm = _engine(_LATENCY)
    ours, least = Samples(), Samples()

    async def engine() -> None:
        with ours.time():
            await asyncio.gather(*(_complete(rlm, FIVE_TURNS) for _ in range(rollouts)))

    async def one() -> None:
        repl = await floor.open(_echo)
        for _ in range(5):
            await asyncio.sleep(_LATENCY)
            await repl.execute("x = 1")
        await repl.close()

    async def bare() -> None:
        with least.time():
            await asyncio.gather(*(one() for _ in range(rollouts)))

    await repeat(5, engine, bare)
    return TableRow(f"{rollouts} rollouts x 5 turns x 50 ms", "ms", ours.median, least.median)


async def _over_http(urls: tuple[str, str]) -> list[TableRow]:
    rows = []
    for url, latency in zip(urls, ("0", "50"), strict=True):
        rlm = RLM(
            backend="vllm",
            backend_kwargs={"model_name": "scripted", "base_url": url},
            max_concurrent_queries=1000,
        )
        for name, question, times in (
            (f"one-turn rollout, HTTP server of {latency} ms", ONE_TURN, 20),
            (f"rollout with 1000 batched sub-calls, HTTP server of {latency} ms", BATCH, 5),
        ):
            samples, raw = Samples(), Samples()

            async def engine(question: str = question, samples: Samples = samples, rlm: RLM = rlm) -> None:
                with samples.time():
                    await _complete(rlm, question)

            async def bare(raw: Samples = raw, url: str = url) -> None:
                with raw.time():
                    await raw_calls(url, 1000, 100)

            if question == BATCH:
                await repeat(times, engine, bare)
            else:
                await repeat(times, engine)
            rows.append(TableRow(name, "ms", samples.median, raw.median if raw.values else None))
    return rows


async def raw_calls(url: str, calls: int, connections: int) -> None:
    """Sends requests with asyncio's streams alone: no pool, no JSON, no retry.

    Args:
        url: URL of the model server.
        calls: number of requests.
        connections: number of connections.
    """
    host, port = url.removeprefix("http://").partition("/")[0].split(":")
    body = b'{"model":"scripted","messages":[{"role":"user","content":"p"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    left = iter(range(calls))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in left:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"(?i)content-length: (\d+)", answer)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert found is not None
            await reader.readexactly(int(found[1]))
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
