"""Rollouts of the harness with scripted models: through verifiers' evaluation client, and through its training client with
real tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import pytest
import verifiers.v1 as vf

from rlm.testing import ModelServer, Policy
from rlm_train import ContextTaskData
from rlm_train.testing import InferenceServer, build_tokenizer

if TYPE_CHECKING:
    AnyTrace: TypeAlias = vf.Trace[Any, Any, Any]

CONTEXT = "apple\npear\nplum\n"
materialised: list[str] = []


class FruitData(ContextTaskData):
    """A question about a text of `copies` repetitions."""

    gold: str
    copies: int = 1
    fault: str | None = None

    def materialise(self) -> str:
        materialised.append(self.context_sha256)
        if self.fault == "gone":
            raise OSError("the disk is gone")
        if self.fault == "changed":
            return "something else"
        return CONTEXT * self.copies


@pytest.fixture(autouse=True)
def _one_loop_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the lock of the training client. The client keeps one lock per process, which belongs to the first event loop
    that waits for the lock. A worker has one loop, but here each test has its own."""
    monkeypatch.setattr("renderers.client._max_prompt_len_lock", asyncio.Lock())


class FruitTask(vf.Task[FruitData]):
    @vf.reward
    async def correct(self, task: FruitData, trace: AnyTrace) -> float:
        return float(trace.info["rlm"]["answer"] == task.gold)


class Run(Protocol):
    """Runs one rollout of a task with a policy as the model."""

    async def __call__(
        self,
        policy: Policy,
        task: vf.Task[Any] | None = None,
        *,
        server: ModelServer | None = None,
        timeout: float | None = None,
        **harness: Any,
    ) -> AnyTrace: ...


def make_task(question: str = "How many fruits?", gold: str = "3", **fields: Any) -> FruitTask:
    text = CONTEXT * fields.get("copies", 1)
    return FruitTask(FruitData(prompt=question, gold=gold, **FruitData.describe_context(text), **fields))


def agent_config(client: dict[str, Any], model: str, timeout: float | None, **harness: Any) -> vf.AgentConfig:
    return vf.AgentConfig.model_validate(
        {
            "model": model,
            "client": {"type": "eval", "api_key_var": "RLM_TEST_KEY", **client},
            "harness": {"id": "rlm-train", **harness},
            "runtime": {"type": "subprocess"},
            "timeout": {"rollout": timeout},
        }
    )


@pytest.fixture
def task() -> Callable[..., FruitTask]:
    materialised.clear()
    return make_task


@pytest.fixture
def materialisations() -> list[str]:
    """Hashes of the contexts that were made since the test began."""
    materialised.clear()
    return materialised


@pytest.fixture
def run() -> Run:
    """Runs a rollout through the evaluation client, which relays chat completions."""

    async def run(
        policy: Policy,
        task: vf.Task[Any] | None = None,
        *,
        server: ModelServer | None = None,
        timeout: float | None = None,
        **harness: Any,
    ) -> AnyTrace:
        async with server or ModelServer(policy) as running:
            config = agent_config({"base_url": running.base_url}, running.model, timeout, **harness)
            async with vf.Agent(config) as agent:
                return await agent.run(task or make_task())

    return run


@pytest.fixture
def token_client(tokenizer_path: Path) -> dict[str, Any]:
    """Settings of a training client, without the server's URL."""
    return {
        "type": "train",
        "renderer": {"name": "qwen3", "enable_thinking": False},
        "renderer_model_name": str(tokenizer_path),
    }


@pytest.fixture
def token_server(tokenizer_path: Path) -> Callable[[Policy], ModelServer]:
    """Makes a server of a policy, for tokens and for chat."""
    return lambda policy: InferenceServer(policy, tokenizer_path)


@pytest.fixture
def train_run(tokenizer_path: Path, token_client: dict[str, Any]) -> Run:
    """Runs a rollout through the training client, which renders prompts to tokens and asks for tokens."""

    async def run(
        policy: Policy,
        task: vf.Task[Any] | None = None,
        *,
        server: ModelServer | None = None,
        timeout: float | None = None,
        renderer: dict[str, Any] | None = None,
        **harness: Any,
    ) -> AnyTrace:
        async with server or InferenceServer(policy, tokenizer_path) as running:
            client = {**token_client, "base_url": running.base_url}
            if renderer is not None:
                client["renderer"] = {"name": "qwen3", **renderer}
            config = agent_config(client, running.model, timeout, **harness)
            async with vf.Agent(config) as agent:
                return await agent.run(task or make_task())

    return run


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))
