"""Whole rollouts: in process beside a bare fork, and over HTTP as the peer runs them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.floor import Floor
from benchmarks.measure import Row, Samples, repeat
from benchmarks.policy import BATCH, FIVE_TURNS, ONE_TURN, policy
from rlm import RLM
from rlm.clients.base import ModelReply
from rlm.testing import ChatRequest
from rlm.types import Message, SamplingArgs, Usage

_ROLLOUTS = 64
_LATENCY = 0.05


async def measure() -> list[Row]:
    """One-turn overhead, batches, and many rollouts at once."""
    with Floor() as floor:
        rows = [
            await _one_turn(floor),
            *[await _batch(floor, seconds) for seconds in (0.0, _LATENCY)],
            await _many(floor),
        ]
    with http_servers() as urls:
        return [*rows, *await _over_http(urls)]


@contextlib.contextmanager
def http_servers() -> Iterator[tuple[str, str]]:
    """The URLs of two model servers in processes of their own, of 0 ms and of 50 ms."""
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(http_server(latency)) for latency in (0.0, _LATENCY)]
        yield urls[0], urls[1]


@contextlib.contextmanager
def http_server(latency: float) -> Iterator[str]:
    """The URL of a model server in a process of its own, whose replies take that many seconds."""
    command = [sys.executable, "-m", "rlm.testing", "benchmarks.policy:policy", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


class _Client:
    """The policy as a client that does nothing besides, so that the engine alone is measured."""

    model = "scripted"

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._sub = ModelReply("ok", self.model, Usage(1, 1))

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        if self._latency:
            await asyncio.sleep(self._latency)
        if len(messages) == 1:
            return self._sub
        return ModelReply(
            policy(ChatRequest([dict(m) for m in messages], self.model)), self.model, Usage(1, 1)
        )

    async def context_length(self, model: str | None = None) -> int | None:
        return None


def _engine(latency: float) -> RLM:
    return RLM(client=_Client(latency), max_concurrent_subcalls=1000)


async def _complete(rlm: RLM, question: str) -> None:
    completion = await rlm.acompletion("x" * 1000, question)
    assert completion.response == "done", completion.error


async def _echo(prompt: str) -> str:
    return prompt


async def _one_turn(floor: Floor) -> Row:
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
    return Row("one-turn rollout, model of 0 ms", "ms", ours.median, least.median)


async def _batch(floor: Floor, latency: float) -> Row:
    rlm = _engine(latency)
    ours, least = Samples(), Samples()

    async def model(prompt: str) -> str:
        await asyncio.sleep(latency)
        return "ok"

    async def engine() -> None:
        with ours.time():
            await _complete(rlm, BATCH)

    async def bare() -> None:
        with least.time():
            await asyncio.sleep(latency)  # the root's own turn
            repl = await floor.open(model)
            await repl.execute("r = ask(['p'] * 1000)")
            await repl.close()

    await repeat(10, engine, bare)
    name = f"rollout with 1000 batched sub-calls, model of {latency * 1000:.0f} ms"
    return Row(name, "ms", ours.median, least.median)


async def _many(floor: Floor) -> Row:
    rlm = _engine(_LATENCY)
    ours, least = Samples(), Samples()

    async def engine() -> None:
        with ours.time():
            await asyncio.gather(*(_complete(rlm, FIVE_TURNS) for _ in range(_ROLLOUTS)))

    async def one() -> None:
        repl = await floor.open(_echo)
        for _ in range(5):
            await asyncio.sleep(_LATENCY)
            await repl.execute("x = 1")
        await repl.close()

    async def bare() -> None:
        with least.time():
            await asyncio.gather(*(one() for _ in range(_ROLLOUTS)))

    await repeat(5, engine, bare)
    return Row(f"{_ROLLOUTS} rollouts x 5 turns x 50 ms", "ms", ours.median, least.median)


async def _over_http(urls: tuple[str, str]) -> list[Row]:
    rows = []
    for url, latency in zip(urls, ("0", "50"), strict=True):
        rlm = RLM(
            backend="vllm",
            backend_kwargs={"model_name": "scripted", "base_url": url},
            max_concurrent_subcalls=1000,
        )
        for name, question, times in (
            (f"one-turn rollout, HTTP server of {latency} ms", ONE_TURN, 20),
            (f"rollout with 1000 batched sub-calls, HTTP server of {latency} ms", BATCH, 5),
        ):
            samples = Samples()
            for _ in range(times):
                with samples.time():
                    await _complete(rlm, question)
            rows.append(Row(name, "ms", samples.median))
    return rows
