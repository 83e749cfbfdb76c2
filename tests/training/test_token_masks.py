"""The trained tokens of a rollout, with the tokens of verifiers' training client."""

from __future__ import annotations

from typing import Any

import pytest

from rlm.testing import ChatRequest, finish, repl_block

ASK = repl_block('replies = llm_query_batched(["one", "two", "one"])')
ANSWER = finish('"3"')
CHILD = finish('"7"')


def policy(request: ChatRequest) -> str:
    if request.is_subcall:
        return f"echo {request.text}"
    if "of 17 characters" in request.messages[1]["content"]:
        return CHILD
    return [ASK, repl_block('rlm_query("count the letters")'), ANSWER][request.turn]


def sampled(trace: Any) -> tuple[list[Any], list[Any]]:
    """The sampled nodes of the root, and the sampled nodes below it."""
    roots = set(trace.info["rlm"]["root_nodes"])
    nodes = [(i, node) for i, node in enumerate(trace.nodes) if node.sampled]
    return [n for i, n in nodes if i in roots], [n for i, n in nodes if i not in roots]


def trainable(trace: Any) -> list[str]:
    """The trained texts of each branch with a trained token. Each such branch is one sample."""
    return [
        " | ".join(node.message.content for node in branch.nodes if any(node.mask))
        for branch in trace.branches
        if any(branch.sampled_mask)
    ]


async def test_only_the_root_is_trained_by_default(train_run: Any) -> None:
    trace = await train_run(policy, max_depth=2)
    root, below = sampled(trace)
    assert trace.ok
    assert trace.reward == 1.0
    assert [node.message.content for node in root][0::2] == [ASK, ANSWER]
    assert sorted(node.message.content for node in below) == [CHILD, "echo one", "echo one", "echo two"]
    assert len(trainable(trace)) == 1
    for node in root:
        assert sum(node.mask) == len(node.logprobs) > 0
    for node in below:
        assert node.token_ids
        assert node.mask == [False] * len(node.token_ids)
        assert node.logprobs == []
        assert node.loss_weights is None


async def test_the_root_is_one_sequence_of_tokens(train_run: Any) -> None:
    """Every turn extends the tokens of the previous one, so there is one branch and one sample."""
    trace = await train_run(policy, max_depth=2)
    branches = [b for b in trace.branches if any(b.sampled_mask)]
    assert len(branches) == 1
    assert sum(node.sampled for node in branches[0].nodes) == 3


async def test_subcalls_can_be_trained_like_the_root(train_run: Any) -> None:
    trace = await train_run(policy, train_subcalls="train", max_depth=2)
    _, below = sampled(trace)
    assert len(trainable(trace)) == 5
    for node in below:
        assert sum(node.mask) == len(node.logprobs) > 0
        assert node.loss_weights is None


async def test_subcalls_can_be_trained_with_a_weight(train_run: Any) -> None:
    trace = await train_run(policy, train_subcalls=0.25, max_depth=2)
    root, below = sampled(trace)
    for node in below:
        assert node.loss_weights == {"rl": [0.25] * len(node.token_ids)}
        assert sum(node.mask) == len(node.logprobs) > 0
    assert all(node.loss_weights is None for node in root)
    weights = [branch.loss_weights("rl") for branch in trace.branches]
    assert sorted(max(w) for w in weights if w is not None) == [0.25] * 4


@pytest.mark.parametrize("setting", ["mask", 0.5])
async def test_masks_and_weights_survive_serialisation(train_run: Any, setting: Any) -> None:
    """An environment worker sends the trace to the trainer as plain data."""
    trace = await train_run(policy, train_subcalls=setting, max_depth=2)
    again = type(trace).model_validate(trace.model_dump(mode="python"))
    assert [node.mask for node in again.nodes] == [node.mask for node in trace.nodes]
    assert [node.loss_weights for node in again.nodes] == [node.loss_weights for node in trace.nodes]
