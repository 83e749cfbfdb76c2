"""Prompts that fit into a model's window, but not together with the longest allowed reply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import verifiers.v1 as vf

from rlm.testing import ChatRequest, ModelServer, finish, repl_block

WINDOW, REPLY = 8_000, 3_000
CODE = repl_block(
    'replies = llm_query_batched(["short", "long " * 5_500])\n'
    "kinds = [isinstance(reply, SubcallError) for reply in replies]"
)
ANSWER = finish('"3" if kinds == [False, True] else str(replies)')


def policy(request: ChatRequest) -> str:
    return "read" if request.is_subcall else [CODE, ANSWER][request.turn]


@pytest.mark.parametrize("subcalls", ["mask", "direct"])
async def test_a_prompt_without_room_for_the_reply_is_not_sent(
    task: Callable[[], vf.Task[Any]], subcalls: str
) -> None:
    """A server would refuse it, and verifiers 0.3 would end the whole rollout."""
    async with ModelServer(policy, max_model_len=WINDOW) as server:
        config = vf.AgentConfig.model_validate(
            {
                "model": server.model,
                "client": {"type": "eval", "base_url": server.base_url, "api_key_var": "RLM_TEST_KEY"},
                "sampling": {"max_tokens": REPLY},
                "harness": {"id": "rlm-train", "train_subcalls": subcalls},
                "runtime": {"type": "subprocess"},
            }
        )
        async with vf.Agent(config) as agent:
            trace = await agent.run(task())
        sent = [request.messages[-1]["content"] for request in server.requests]
    assert trace.reward == 1.0, trace.info["rlm"]
    assert trace.metrics["subcall_failures"] == 1
    assert trace.stop_condition == "agent_completed"
    assert "short" in sent
    assert not any(text.startswith("long ") for text in sent)


async def test_the_server_refuses_a_prompt_without_room_for_the_reply(
    task: Callable[[], vf.Task[Any]],
) -> None:
    """Counterpart of the test above: without a limit of replies the same rollout sends both prompts, and both are answered."""
    async with ModelServer(policy, max_model_len=WINDOW) as server:
        config = vf.AgentConfig.model_validate(
            {
                "model": server.model,
                "client": {"type": "eval", "base_url": server.base_url, "api_key_var": "RLM_TEST_KEY"},
                "harness": {"id": "rlm-train"},
                "runtime": {"type": "subprocess"},
            }
        )
        async with vf.Agent(config) as agent:
            trace = await agent.run(task())
    assert trace.metrics["subcall_failures"] == 0
