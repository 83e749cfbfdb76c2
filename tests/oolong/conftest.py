"""Runs policies on examples: in a plain namespace, to test the policies' code without the engine, and as rollouts of the whole
environment."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from oolong.example import Example
from rlm.testing import ChatRequest, ModelServer, Policy


class SubcallError(str):
    """Stand-in for the REPL's class."""


@dataclass
class Played:
    """The outcome of a rollout."""

    answer: str
    ready: bool
    turns: int
    prompts: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    forced: str | None = None
    """The reply to the request for a final answer, if turns ran out."""


AskSub = Callable[[str], str]
Play = Callable[..., Played]


def _play(
    policy: Callable[[ChatRequest], str],
    example: Example,
    *,
    max_turns: int = 12,
    sub: Callable[[Sequence[str], AskSub], Sequence[str]] | None = None,
) -> Played:
    def ask(prompt: str) -> str:
        return policy(ChatRequest([{"role": "user", "content": prompt}], "m"))

    def llm_query_batched(prompts: Sequence[str]) -> Sequence[str]:
        played.prompts.extend(prompts)
        return [ask(prompt) for prompt in prompts] if sub is None else sub(prompts, ask)

    answer = {"content": "", "ready": False}
    namespace: dict[str, Any] = {
        "context": example.materialise(),
        "answer": answer,
        "llm_query_batched": llm_query_batched,
        "SubcallError": SubcallError,
    }
    played = Played("", False, 0)
    first = f"Question: {example.question}\n\nContext: a str of {example.context_size:,} characters.\n\n{_header(1, max_turns)}"
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "A REPL."},
        {"role": "user", "content": first},
    ]
    for turn in range(1, max_turns + 1):
        reply = policy(ChatRequest(messages, "m"))
        played.replies.append(reply)
        played.turns = turn
        code = re.search(r"(?s)```repl\n(.*)\n```", reply)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                exec(code[1] if code else "", namespace)
            except Exception:
                traceback.print_exc()
        if answer["ready"]:
            break
        observation = f"Output:\n{out.getvalue()}\n\n{_header(turn + 1, max_turns)}"
        if turn == max_turns:
            observation = f"Output:\n{out.getvalue()}\n\nThere are no turns left, and no more code will run."
        messages = [
            *messages,
            {"role": "assistant", "content": reply},
            {"role": "user", "content": observation},
        ]
    else:
        played.forced = policy(ChatRequest(messages, "m"))
    played.answer, played.ready = str(answer["content"]), bool(answer["ready"])
    return played


def _header(turn: int, of: int) -> str:
    return f"Turn {turn}/{of}" + (": the last one." if turn == of else "")


@pytest.fixture
def play() -> Play:
    """Runs a policy on an example: `play(policy, example, max_turns=12, sub=None)`."""
    return _play


@pytest.fixture
def failed_subcall() -> Callable[[str], str]:
    """Makes the value that a failed sub-call returns in the REPL."""
    return lambda reason: SubcallError(f"Error: {reason}")


class Episodes(Protocol):
    """Runs one episode of each task with a policy as the model, and returns their traces in the order of the tasks."""

    async def __call__(
        self,
        policy: Policy,
        taskset: dict[str, Any],
        *,
        harness: dict[str, Any] | None = None,
        **env: Any,
    ) -> list[list[Any]]: ...


async def _episodes(
    policy: Policy, taskset: dict[str, Any], *, harness: dict[str, Any] | None = None, **env: Any
) -> list[list[Any]]:
    import verifiers.v1 as vf

    agent = {"harness": {"id": "oolong", **(harness or {})}, "runtime": {"type": "subprocess"}}
    config = vf.resolve_env_config({"taskset": {"id": "oolong", **taskset}, "agent": agent, **env})
    environment = vf.load_environment(config)
    async with ModelServer(policy) as server, environment.serving():
        client = vf.EvalClientConfig(base_url=server.base_url, api_key_var="RLM_TEST_KEY")
        model = vf.ModelContext(model=server.model, client=client)
        runs = [environment.run_episode(task, model) for task in environment.taskset]
        done = await asyncio.gather(*runs)
    assert [error for episode in done for error in episode.errors] == []
    return [list(episode.traces) for episode in done]


@pytest.fixture
def episodes() -> Episodes:
    return _episodes
