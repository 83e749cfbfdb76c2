"""The environment under load: `make bench-env`.

One environment worker of verifiers, in its own process, runs 512 rollouts at once, in three modes: with traced sub-calls,
with `train_subcalls = "direct"`, and as a bare loop of the same model calls without an engine. The bare loop is the best
that the worker's endpoint can do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import verifiers.v1 as vf
from rich.console import Console
from rich.table import Table
from verifiers.v1.serve.client import EnvClient

from benchmarks.env_tasks import data_of
from benchmarks.measure import private_megabytes
from benchmarks.rollouts import http_server
from benchmarks.scripted_policy import Shape, policy
from rlm.testing import ChatRequest, ModelServer

SHAPE = Shape(turns=3, subcalls=4)
MANY = Shape(turns=2, subcalls=300, at_once=100)
MODES = ("traced", "direct", "bare", "unsettled")
CONTEXT_LINES = 1000  # 56 KB of text
EXAMPLES = 128  # four rollouts each, like the groups of a trainer


@dataclass(slots=True)
class Figures:
    """The figures of one mode."""

    rows: dict[str, float] = field(default_factory=dict)
    """Values by the name of their row."""
    slow: list[str] = field(default_factory=list)
    """Descriptions of slow steps of the event loop."""


class EnvWorker:
    """The process of the environment server, with its probes."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self._process = process
        self._client = EnvClient(address)
        self.pid = process.pid

    async def ready(self) -> None:
        while not await self._client.health(timeout=0.5):
            if self._process.returncode is not None:
                sys.exit("the environment worker did not start")

    async def probes(self) -> dict[str, Any]:
        """The figures of the probes since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        figures: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return figures

    async def rollout(self, url: str, number: int, shape: Shape) -> None:
        """Runs one rollout, and exits if it is not right."""
        episode = await self._client.run(
            client=vf.EvalClientConfig.model_validate({"base_url": url, "api_key_var": "RLM_BENCH_KEY"}),
            model="scripted",
            sampling=vf.SamplingConfig.model_validate({}),
            task_data=data_of(number % EXAMPLES, shape.question, CONTEXT_LINES).model_dump(mode="json"),
        )
        trace = episode.traces[0]
        if not trace.ok or trace.reward != 1.0:
            sys.exit(f"a rollout failed: {trace.info}\n{trace.errors}")

    async def rollouts(self, url: str, count: int, shape: Shape) -> float:
        """Runs `count` rollouts at once, and returns their duration in seconds."""
        started = time.perf_counter()
        await asyncio.gather(*(self.rollout(url, number, shape) for number in range(count)))
        return time.perf_counter() - started

    async def end(self) -> None:
        await self._client.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@contextlib.asynccontextmanager
async def _worker(mode: str) -> AsyncIterator[EnvWorker]:
    bare = mode == "bare"
    harness: dict[str, Any] = (
        {"id": "env-bare"} if bare else {"id": "rlm-train", "max_concurrent_subcalls": MANY.at_once}
    )
    if mode == "direct":
        harness["train_subcalls"] = "direct"
    if mode == "unsettled":
        harness["settle_collector"] = False
    config = {
        "taskset": {"id": "env-tasks"},
        "agent": {"harness": harness, "runtime": {"type": "subprocess"}},
    }
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/server"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.env_worker", address, json.dumps(config)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**24,
            cwd=here.parent,
            env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"},
        )
        worker = EnvWorker(process, address)
        try:
            await worker.ready()
            yield worker
        finally:
            await worker.end()


class _Gate:
    """A model that holds back the second turn of every rollout until the gate is opened."""

    def __init__(self) -> None:
        self.waiting = 0
        self.open = asyncio.Event()

    async def __call__(self, request: ChatRequest) -> str:
        if request.turn == 1:
            self.waiting += 1
            await self.open.wait()
        return policy(request)


async def _memory(worker: EnvWorker, count: int) -> tuple[float, float]:
    """MB per open rollout, of `count`: growth of the worker itself, and private memory of its REPLs."""
    process = psutil.Process(worker.pid)
    gate = _Gate()
    async with ModelServer(gate, record=False) as server:
        before = process.memory_info().rss
        running = asyncio.ensure_future(worker.rollouts(server.base_url, count, SHAPE))
        while gate.waiting < count:
            await asyncio.wait([running], timeout=0.1)
        grown = (process.memory_info().rss - before) / 1e6
        repls = await asyncio.to_thread(private_megabytes, worker.pid)
        gate.open.set()
        await running
    return grown / count, repls / count


def say(text: str) -> None:
    """Prints progress."""
    print(text, file=sys.stderr, flush=True)


async def measure(mode: str, urls: tuple[str, str], count: int) -> Figures:
    """Measures all rows of one mode.

    Args:
        mode: one of `MODES`.
        urls: URLs of the model servers with a latency of 0 ms and of 2 s.
        count: number of rollouts at once.
    """
    figures = Figures()
    rows = figures.rows
    async with _worker(mode) as worker:
        await worker.rollouts(urls[0], 4, SHAPE)
        say(f"{mode}: the worker is up")
        own, repls = await _memory(worker, min(count, 128))
        rows["worker's memory for an open rollout (MB)"] = own
        rows["its REPL's private memory (MB)"] = repls
        await worker.probes()
        for url, latency in zip(urls, ("0 ms", "2 s"), strict=True):
            seconds = await worker.rollouts(url, count, SHAPE)
            probes = await worker.probes()
            say(
                f"{mode}: {count} rollouts in {seconds:.1f} s, model of {latency}; "
                f"{probes['collecting']:.1f} s of them in the garbage collector"
            )
            rows[f"rollouts a second, model of {latency}"] = count / seconds
            rows[f"model calls a second, model of {latency}"] = count * SHAPE.calls / seconds
            rows[f"event-loop lag, median, model of {latency} (ms)"] = probes["lag"][0]
            rows[f"event-loop lag, p99, model of {latency} (ms)"] = probes["lag"][1]
            rows[f"longest step of the loop, model of {latency} (ms)"] = probes["longest"]
            rows[f"longest garbage collection, model of {latency} (ms)"] = probes["collection"]
            rows[f"worker's CPU for a rollout, model of {latency} (ms)"] = probes["cpu"] * 1e3 / count
            figures.slow += [f"{mode}, {latency}: {s * 1e3:.0f} ms {what}" for s, what in probes["slow"]]
        seconds = await worker.rollouts(urls[0], 1, MANY)
        rows[f"one rollout with {MANY.subcalls} sub-calls, model of 0 ms (s)"] = seconds
        rows["longest step of the loop in it (ms)"] = (await worker.probes())["longest"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.env", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=512, help="number of rollouts at once (default: 512)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES[:3]))
    parser.add_argument(
        "--slow", action="store_true", help="list the steps that blocked the event loop for over 50 ms"
    )
    arguments = parser.parse_args()
    with http_server(0.0) as fast, http_server(2.0) as slow:
        results = {
            mode: asyncio.run(measure(mode, (fast, slow), arguments.rollouts)) for mode in arguments.modes
        }
    console = Console(width=120)
    table = Table(
        title=f"{arguments.rollouts} rollouts at once in one environment worker, each of {SHAPE.turns} turns and "
        f"{SHAPE.subcalls} sub-calls; {os.cpu_count()} cores, Python {sys.version.split()[0]}"
    )
    table.add_column("measurement")
    for name in (*arguments.modes, *([] if "bare" not in arguments.modes else ["traced / bare"])):
        table.add_column(name, justify="right")
    for row in next(iter(results.values())).rows:
        cells = [results[mode].rows[row] for mode in arguments.modes]
        ratio = []
        if "bare" in results and "traced" in results:
            least = results["bare"].rows[row]
            ratio = [f"{results['traced'].rows[row] / least:.2f}" if least else "-"]
        table.add_row(row, *(f"{cell:.2f}" for cell in cells), *ratio)
    console.print(table)
    if arguments.slow:
        for figures in results.values():
            for line in figures.slow:
                console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
