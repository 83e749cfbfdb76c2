"""From a task to training samples with verifiers' own programs: its environment server and client, its training client with
a real renderer, and a model server for tokens. tests/acceptance/prime_rl tests prime-rl's part."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import verifiers.v1 as vf
from verifiers.v1.serve import EnvClient, EnvServer
from verifiers.v1.utils.loaders import resolve_env_config

from oolong.policies.reference import ReferencePolicy, is_root
from rlm_train.testing import InferenceServer, generations_of

TASKSET = {"id": "oolong", "sizes": [6_000], "num_tasks": 3}
PERFECT = ReferencePolicy(accuracy=1.0, sources=["wordnet"])

# Orphans of the workers become children of this process, so that the test sees them.
SERVE = """
import ctypes, json, sys
from verifiers.v1.serve import serve_env

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    serve_env(**json.loads(sys.argv[1]))
"""


def env_config(**harness: Any) -> dict[str, Any]:
    agent = {"harness": {"id": "rlm-train", **harness}, "runtime": {"type": "subprocess"}}
    return {"taskset": TASKSET, "agent": agent}


def tasks() -> list[Any]:
    """Tasks in the form of an orchestrator, which never makes a context."""
    return list(vf.load_taskset(resolve_env_config(env_config()).taskset))


class Orchestrator:
    """Asks an environment server for episodes, like prime-rl's orchestrator."""

    def __init__(self, address: str, tokenizer: Path) -> None:
        self.client = EnvClient(address)
        self._tokenizer = tokenizer

    async def rollout(self, server: InferenceServer, task: Any, **sampling: Any) -> Any:
        client = {
            "base_url": server.base_url,
            "api_key_var": "RLM_TEST_KEY",
            "renderer": {"name": "qwen3", "enable_thinking": False},
            "renderer_model_name": str(self._tokenizer),
        }
        episode = await self.client.run(
            client=vf.TrainClientConfig.model_validate(client),
            model=server.model,
            sampling=vf.SamplingConfig.model_validate({"temperature": 0.7, "top_p": 0.9, **sampling}),
            task_data=task.data.model_dump(mode="json"),
        )
        [trace] = episode.traces
        return trace


Serve = Callable[..., Orchestrator]


@pytest.fixture
async def serve(tokenizer_path: Path) -> AsyncIterator[Serve]:
    """Runs an environment server on the test's own event loop."""
    with tempfile.TemporaryDirectory(prefix="rlm-test-") as sockets:
        address = f"ipc://{sockets}/env"
        running: list[tuple[Orchestrator, asyncio.Task[None]]] = []

        def serve(**harness: Any) -> Orchestrator:
            server = EnvServer(resolve_env_config(env_config(**harness)), address)
            running.append((Orchestrator(address, tokenizer_path), asyncio.create_task(server.run())))
            return running[-1][0]

        yield serve
        for orchestrator, task in running:
            await orchestrator.client.close()
            task.cancel()
            await task


def samples_of(trace: Any, server: InferenceServer) -> list[list[Any]]:
    """The calls of each sample of a trace. Raises if its tokens or log-probabilities differ from those of the calls."""
    return [
        generations_of(branch.token_ids, branch.sampled_mask, branch.logprobs, server.generations)
        for branch in trace.branches
        if any(branch.sampled_mask)
    ]


@pytest.mark.parametrize("subcalls", ["mask", "train", 0.25])
async def test_samples_are_made_of_the_tokens_that_the_model_server_saw(
    serve: Serve, tokenizer_path: Path, subcalls: Any
) -> None:
    orchestrator = serve(train_subcalls=subcalls)
    async with InferenceServer(PERFECT, tokenizer_path, spell=True) as server:
        group = await asyncio.gather(*(orchestrator.rollout(server, tasks()[0]) for _ in range(4)))
    assert [trace.reward for trace in group] == [1.0] * 4
    for trace in group:
        calls = [call for call in server.generations if call.session == trace.id]
        below = [call for call in calls if not is_root(call.request.messages)]
        samples = samples_of(trace, server)
        [root] = [sample for sample in samples if is_root(sample[0].request.messages)]
        assert len(root) == trace.metrics["turns"] == len(calls) - len(below) >= 3
        assert len(below) == trace.metrics["subcalls"] >= 1
        longest = max(len(call.prompt_ids) + len(call.completion_ids) for call in calls)
        assert trace.metrics["longest_branch"] == longest
        assert len(samples) == (1 if subcalls == "mask" else 1 + len(below))
        weights = Counter(weight_of(branch) for branch in trace.branches if any(branch.sampled_mask))
        assert weights == ({None: 1, 0.25: len(below)} if subcalls == 0.25 else {None: len(samples)})


def weight_of(branch: Any) -> float | None:
    """The weight of the sampled tokens in the RL loss; None if there is none, which counts as 1."""
    stream = branch.loss_weights("rl")
    if stream is None:
        return None
    [weight] = {value for value, sampled in zip(stream, branch.sampled_mask, strict=True) if sampled}
    return float(weight)


async def test_sub_calls_have_the_runs_sampling(serve: Serve, tokenizer_path: Path) -> None:
    orchestrator = serve()
    async with InferenceServer(PERFECT, tokenizer_path) as server:
        await orchestrator.rollout(server, tasks()[0], max_tokens=3_000, extra_body={"cache_salt": "7"})
    for call in server.generations:
        sampling = call.request.sampling
        assert (sampling["temperature"], sampling["top_p"], sampling["max_tokens"]) == (0.7, 0.9, 3_000)
        assert call.cache_salt == "7"


async def test_task_data_and_traces_hold_no_text_of_the_context(serve: Serve, tokenizer_path: Path) -> None:
    orchestrator = serve()
    task = tasks()[0]
    async with InferenceServer(PERFECT, tokenizer_path) as server:
        trace = await orchestrator.rollout(server, task)
    lines = [line for line in task.data.materialise().splitlines() if len(line) > 40]
    assert len(lines) > 20
    for sent in (task.data.model_dump_json(), json.dumps(trace.task.model_dump(mode="json"))):
        assert len(sent) < 5_000
        assert not any(line in sent for line in lines)


async def test_a_sample_spans_a_weight_update_within_a_turn(
    serve: Serve, tokenizer_path: Path, tmp_path: Path
) -> None:
    import aiohttp

    asked = asyncio.Event()
    go_on = asyncio.Event()

    async def policy(request: Any) -> str:
        if is_root(request.messages) and request.turn == 1:
            asked.set()
            await go_on.wait()
        return PERFECT(request)

    orchestrator = serve()
    async with InferenceServer(policy, tokenizer_path, spell=True) as server, aiohttp.ClientSession() as http:
        rollout = asyncio.create_task(orchestrator.rollout(server, tasks()[0]))
        await asked.wait()
        for path, body in (("/pause", None), ("/update_weights", {"weight_dir": str(tmp_path)})):
            async with http.post(server.url + path, json=body) as response:
                assert response.status == 200
        go_on.set()
        async with http.post(f"{server.url}/resume") as response:
            assert response.status == 200
        trace = await rollout
    assert trace.reward == 1.0
    [sample] = samples_of(trace, server)
    assert [call.versions for call in sample][:3] == [(0, 0), (0, 1), (1, 1)]


@pytest.mark.timeout(300)  # starts three processes that import verifiers
@pytest.mark.parametrize("elastic", [False, True], ids=["static", "elastic"])
async def test_pools_of_workers_give_whole_samples(
    tokenizer_path: Path, tmp_path: Path, elastic: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="rlm-test-") as sockets:
        address = f"ipc://{sockets}/env"
        options = {"max_workers": 2, "elastic": elastic, "multiplex": 1, "address": address}
        script = tmp_path / "serve.py"  # a file, which the workers import again
        script.write_text(SERVE)
        command = [sys.executable, str(script), json.dumps({**options, "config_data": env_config()})]
        program = psutil.Popen(command, env={**os.environ, "RLM_TEST_KEY": "none"}, stderr=subprocess.DEVNULL)
        orchestrator = Orchestrator(address, tokenizer_path)
        try:
            async with InferenceServer(PERFECT, tokenizer_path, spell=True) as server:
                rollouts = (orchestrator.rollout(server, task) for task in [*tasks(), *tasks()])
                traces = await asyncio.gather(*rollouts)
                samples = [samples_of(trace, server) for trace in traces]
            workers = program.children(recursive=True)
        finally:
            await orchestrator.client.close()
            program.terminate()
            status = await asyncio.to_thread(program.wait, 30)
    assert [trace.reward for trace in traces] == [1.0] * 6
    assert [len(found) for found in samples] == [1] * 6
    _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 20)
    assert alive == []
    assert status == 0
