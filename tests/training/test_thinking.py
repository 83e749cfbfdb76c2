"""Replies with thinking and Qwen3's real renderer: the number of samples of a root trajectory."""

from __future__ import annotations

from typing import Any

import pytest

from rlm.testing import ChatRequest, Reply, finish, repl_block
from rlm_train.testing import InferenceServer, generations_of

TURNS = (
    repl_block("print(len(context))"),
    repl_block("print(context.split())"),
    repl_block("print(context[:5])"),
    finish('"3"'),
)
THOUGHT = "What is left to do?\n\nLook at the text first, then count."


def silent(request: ChatRequest) -> Reply:
    return Reply(TURNS[request.turn])


def thinking(request: ChatRequest) -> Reply:
    return Reply(TURNS[request.turn], reasoning=THOUGHT)


@pytest.mark.parametrize(
    ("policy", "renderer", "spell", "samples"),
    [
        pytest.param(silent, {"enable_thinking": False}, True, 1, id="no-thinking"),
        pytest.param(silent, {}, False, 1, id="thinking-allowed-and-not-used"),
        # Every turn is rendered anew, and finds its prefix only if the tokenizer chooses the same tokens.
        pytest.param(silent, {}, True, 4, id="thinking-allowed-and-tokens-of-the-models-own"),
        # For models that never think (Instruct-2507), whose template inserts no empty thought.
        pytest.param(silent, {"thinking_retention": "all"}, True, 1, id="no-thinking-in-the-template-either"),
        pytest.param(silent, {"thinking_retention": "all"}, True, 1, id="thinking-kept-and-not-used"),
        pytest.param(thinking, {}, True, 4, id="thinking"),
        pytest.param(
            thinking, {"thinking_retention": "tool_cycle"}, True, 4, id="thinking-kept-in-a-tool-cycle"
        ),
        pytest.param(thinking, {"thinking_retention": "all"}, True, 1, id="thinking-kept"),
    ],
)
async def test_a_root_trajectory_with_thinking_gives_the_expected_samples(
    train_run: Any, tokenizer_path: Any, policy: Any, renderer: dict[str, Any], spell: bool, samples: int
) -> None:
    server = InferenceServer(policy, tokenizer_path, spell=spell)
    trace = await train_run(policy, server=server, renderer=renderer)
    assert trace.ok
    assert trace.reward == 1.0
    branches = [branch for branch in trace.branches if any(branch.sampled_mask)]
    assert len(branches) == samples
    calls = [generations_of(b.token_ids, b.sampled_mask, b.logprobs, server.generations) for b in branches]
    # Every reply is trained, in one sample or another.
    assert {call.completion_ids for found in calls for call in found} == {
        call.completion_ids for call in server.generations
    }
    assert len(server.generations) == len(TURNS)
    tokens = sum(len(branch.token_ids) for branch in branches)
    longest = max(len(branch.token_ids) for branch in branches)
    # There is one sample per turn, which repeats all earlier turns.
    assert (tokens > 2 * longest) == (samples > 1)
    thoughts = [text_of(request) for request in server.generations[-1].request.messages]
    assert any(THOUGHT in thought for thought in thoughts) == (samples == 1 and policy is thinking)


def text_of(message: dict[str, Any]) -> str:
    return f"{message.get('reasoning_content')}{message['content']}"


async def test_a_sub_call_is_one_sample_with_or_without_thinking(train_run: Any, tokenizer_path: Any) -> None:
    code = finish("'3'", 'llm_query("one?")')

    def policy(request: ChatRequest) -> Reply:
        return Reply("1" if request.is_subcall else code, reasoning=THOUGHT)

    server = InferenceServer(policy, tokenizer_path, spell=True)
    trace = await train_run(policy, server=server, renderer={}, train_subcalls="train")
    assert len([branch for branch in trace.branches if any(branch.sampled_mask)]) == 2
