"""Faults around rollouts in an environment worker: nothing is left behind, and no rollout is lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from rlm.testing import ChatRequest, ModelServer, finish, repl_block
from rlm_train.testing import InferenceServer

# A worker imports verifiers, which takes ten seconds of CPU time.
pytestmark = pytest.mark.timeout(180)

LOOK = repl_block('number = llm_query("repeat: " + context.split()[1])')
ANSWER = finish('f"{context.split()[1]} x {len(context.splitlines())}"')

# Cells that do not end by themselves: one in Python, and one in a C function that cannot be interrupted. Both report that
# they run, and have a child process that would outlive them.
STUCK = """import re, subprocess
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
llm_query("stuck " + context.split()[1])
"""
IN_PYTHON = repl_block(STUCK + "while True: pass")
IN_C = repl_block(STUCK + 're.match("(a+)+$", "a" * 60 + "b")')


def number_of(request: ChatRequest) -> int:
    """The number of the task that a root's request is about."""
    found = re.search(r"task (\d+)\?", request.messages[1]["content"])
    assert found is not None
    return int(found[1])


def play(request: ChatRequest, turns: Sequence[str] = (LOOK, ANSWER)) -> str:
    """A policy with the root's turns in order. Its sub-models repeat their prompts."""
    return request.text.removeprefix("repeat: ") if request.is_subcall else turns[request.turn]


class Arrivals:
    """Waits for requests to arrive, and can hold them back."""

    def __init__(self) -> None:
        self._seen: list[ChatRequest] = []
        self._changed = asyncio.Condition()
        self.open = asyncio.Event()

    async def note(self, request: ChatRequest) -> None:
        async with self._changed:
            self._seen.append(request)
            self._changed.notify_all()

    async def count(self, number: int, kind: Callable[[ChatRequest], bool]) -> None:
        """Returns once `number` requests of a kind have come."""
        async with self._changed:
            await self._changed.wait_for(lambda: sum(map(kind, self._seen)) >= number)


def below(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


@pytest.mark.timeout(300)  # a broker and two workers
async def test_a_killed_worker_leaves_no_processes_of_its_rollouts(start_worker: Any, ended: Any) -> None:
    """The other worker's rollouts end well. verifiers neither replaces a dead worker nor answers its requests: a client gives
    them up and asks again, as a trainer does with stale rollouts."""
    worker = start_worker(workers=2, cell_timeout=3.0)
    arrivals = Arrivals()

    async def policy(request: ChatRequest) -> str:
        await arrivals.note(request)
        if not request.is_subcall and not arrivals.open.is_set():
            if number_of(request) < 2:
                return IN_PYTHON
            await arrivals.open.wait()
        return "noted" if request.is_subcall else ANSWER

    async with ModelServer(policy) as server:
        rollouts = [asyncio.ensure_future(worker.run(server, number)) for number in range(4)]
        await arrivals.count(4, lambda request: not request.is_subcall)
        await arrivals.count(2, lambda request: "stuck" in request.text)
        # The broker gives each rollout to the less busy worker, so each worker has one in a cell and one waiting for its model.
        loaded = [child for child in worker.process.children() if below(child)]
        assert len(loaded) == 2
        victim, other = loaded
        doomed = below(victim)
        assert len(doomed) >= 3  # a supervisor, a fork server, a worker
        victim.kill()
        assert await ended([victim, *doomed]) == []
        arrivals.open.set()
        lost = set(rollouts)
        while len(lost) > 2:
            done, lost = await asyncio.wait(lost, return_when=asyncio.FIRST_COMPLETED)
            assert all(rollout.result().reward == 1.0 for rollout in done)
        for rollout in lost:
            rollout.cancel()
        await asyncio.wait(lost)
        again = await asyncio.gather(
            *(worker.run(server, number) for number in range(4) if rollouts[number] in lost)
        )
    assert [trace.reward for trace in again] == [1.0] * 2
    assert other.is_running()
    assert len(list(worker.temporary.glob("rlm-*"))) <= 1  # that of the other worker


async def test_cancelled_rollouts_end_in_every_state(worker: Any) -> None:
    arrivals = Arrivals()

    async def policy(request: ChatRequest) -> str:
        await arrivals.note(request)
        if request.is_subcall:
            if "stuck" not in request.text:
                await arrivals.open.wait()
            return play(request)
        number = number_of(request)
        if number == 1:
            await arrivals.open.wait()
        return play(request, (IN_PYTHON if number == 2 else LOOK, ANSWER))

    async with ModelServer(policy) as server:
        waiting, in_cell, in_sub_call, untouched = (
            asyncio.ensure_future(worker.run(server, number)) for number in (1, 2, 3, 4)
        )
        await arrivals.count(4, lambda request: not request.is_subcall)
        await arrivals.count(1, lambda request: "stuck" in request.text)
        await arrivals.count(2, lambda request: "repeat" in request.text)
        for rollout in (waiting, in_cell, in_sub_call):
            rollout.cancel()
        await asyncio.wait([waiting, in_cell, in_sub_call])
        arrivals.open.set()
        assert (await untouched).reward == 1.0
        assert await worker.left_by_rollouts() == []
        assert (await worker.run(server, 1)).reward == 1.0
    assert not list((worker.home / ".cache/verifiers/runtimes/subprocess").iterdir())


@pytest.mark.parametrize("cell", [IN_PYTHON, IN_C], ids=["python", "c"])
async def test_a_hanging_cell_costs_only_its_time_limit(worker: Any, cell: str) -> None:
    async with ModelServer(lambda request: play(request, (cell, ANSWER))) as server:
        trace = await worker.run(server, 1)
        assert await worker.left_by_rollouts() == []
    assert trace.reward == 1.0
    assert trace.metrics["cell_errors"] == 1
    assert trace.info["rlm"]["failure"] is None
    observation = trace.nodes[trace.info["rlm"]["root_nodes"][3]].message.content
    assert "3" in observation
    assert "time" in observation.lower()


@pytest.mark.parametrize("setting", ["mask", "direct"])
async def test_rollouts_survive_a_restart_of_the_model_server(serve_here: Any, setting: str) -> None:
    trainer = serve_here(train_subcalls=setting)
    arrivals = Arrivals()

    async def policy(request: ChatRequest) -> str:
        await arrivals.note(request)
        if not arrivals.open.is_set() and (request.is_subcall or request.turn == 1):
            await asyncio.Event().wait()  # until the server is stopped
        return play(request)

    server = ModelServer(policy)
    await server.start()
    rollouts = [asyncio.ensure_future(trainer.run(server, number)) for number in range(4)]
    await arrivals.count(4, lambda request: request.is_subcall)
    await server.stop()
    arrivals.open.set()
    async with ModelServer(policy, port=server.port) as server:
        traces = await asyncio.gather(*rollouts)
    assert [trace.reward for trace in traces] == [1.0] * 4
    for trace in traces:
        assert trace.ok
        assert trace.info["rlm"]["failure"] is None
        assert trace.metrics["subcall_failures"] == 0
        if setting == "direct":
            assert trace.info["rlm"]["direct"]["retries"] >= 1
        else:
            assert any(call.error is not None for call in trace.calls)


async def test_a_model_server_that_does_not_come_back_is_named_on_every_trace(serve_here: Any) -> None:
    trainer = serve_here(max_timeout=3.0)
    arrivals = Arrivals()

    async def policy(request: ChatRequest) -> str:
        await arrivals.note(request)
        if request.turn == 1:
            await asyncio.Event().wait()
        return play(request)

    async with ModelServer(policy) as server:
        rollouts = [asyncio.ensure_future(trainer.run(server, number)) for number in range(4)]
        await arrivals.count(4, lambda request: request.turn == 1)
    traces = await asyncio.gather(*rollouts)
    for trace in traces:
        assert trace.ok
        assert trace.rewards["correct"].score == 0.0
        assert trace.info["rlm"]["failure"]["where"] == "limit"
        assert trace.stop_condition == "agent_timeout"
        assert any(call.error is not None for call in trace.calls)


async def test_a_weight_update_within_a_turn_only_delays_it(
    serve_here: Any, tokenizer_path: Path, token_client: Any, tmp_path: Path
) -> None:
    """The trainer pauses the server, loads an adapter and resumes the server. Running rollouts keep their model's name, and
    later ones get the adapter's."""
    trainer = serve_here()
    arrivals = Arrivals()

    async def policy(request: ChatRequest) -> str:
        await arrivals.note(request)
        return play(request)

    async with (
        InferenceServer(policy, tokenizer_path) as server,
        aiohttp.ClientSession(server.url) as steer,
    ):

        async def post(path: str, body: Any = None) -> None:
            async with steer.post(path, json=body) as response:
                assert response.status == 200

        base, client = server.model, {**token_client, "base_url": server.base_url}
        await post("/pause?mode=keep&clear_cache=false")
        old = [asyncio.ensure_future(trainer.run(server, number, client=client)) for number in range(4)]
        await post("/load_lora_adapter", {"lora_name": "adapter", "lora_path": str(tmp_path)})
        await post("/resume")
        await arrivals.count(1, lambda request: request.is_subcall)
        await post("/pause?mode=keep&clear_cache=false")
        new = [
            asyncio.ensure_future(trainer.run(server, number, client=client, model="adapter"))
            for number in range(4)
        ]
        await post("/resume")
        traces = await asyncio.gather(*old, *new)
    assert [trace.reward for trace in traces] == [1.0] * 8
    assert all(call.error is None for trace in traces for call in trace.calls)
    for trace, name in zip(traces, [base] * 4 + ["adapter"] * 4, strict=True):
        assert {call.model for call in trace.calls} == {name}
        assert len([branch for branch in trace.branches if any(branch.sampled_mask)]) == 1
    asked = [generation.model for generation in server.generations]
    assert sorted(asked) == ["adapter"] * 12 + [base] * 12


async def test_a_weight_update_only_delays_direct_sub_calls(serve_here: Any) -> None:
    trainer = serve_here(train_subcalls="direct")
    arrivals = Arrivals()

    async def policy(request: ChatRequest) -> str:
        await arrivals.note(request)
        if request.is_subcall:
            await arrivals.open.wait()
        return play(request)

    async with ModelServer(policy, models=("base", "adapter")) as server:
        old = [asyncio.ensure_future(trainer.run(server, number, model="base")) for number in range(4)]
        await arrivals.count(4, lambda request: request.is_subcall)
        arrivals.open.set()
        new = [trainer.run(server, number, model="adapter") for number in range(4)]
        traces = await asyncio.gather(*old, *new)
    assert [trace.reward for trace in traces] == [1.0] * 8
    assert [trace.info["rlm"]["direct"]["retries"] for trace in traces] == [0] * 8
    sub_calls = [request.model for request in server.requests if request.is_subcall]
    assert sorted(sub_calls) == ["adapter"] * 4 + ["base"] * 4
