"""Masks in the traces that a trainer gets from an environment worker, which sends each node at once in verifiers 0.4."""

from __future__ import annotations

from typing import Any

import pytest

from rlm.testing import finish, repl_block

CHILD = finish('"7"')
TURNS = (
    repl_block('replies = llm_query_batched(["one", "two"])'),
    repl_block('rlm_query("count the letters")'),
    finish('"5 x 100"'),
)


def policy(request: Any) -> str:
    if request.is_subcall:
        return f"echo {request.text}"
    if "of 17 characters" in request.messages[1]["content"]:
        return CHILD
    return TURNS[request.turn]


@pytest.mark.parametrize("setting", ["mask", 0.25])
async def test_sub_calls_are_marked_when_they_arrive(
    serve_here: Any, token_server: Any, token_client: Any, setting: Any
) -> None:
    trainer = serve_here(train_subcalls=setting, max_depth=2)
    async with token_server(policy) as server:
        trace = await trainer.run(server, 5, client=token_client)
    assert trace.ok
    assert trace.reward == 1.0
    roots = set(trace.info["rlm"]["root_nodes"])
    root = [node for number, node in enumerate(trace.nodes) if node.sampled and number in roots]
    below = [node for number, node in enumerate(trace.nodes) if node.sampled and number not in roots]
    assert [node.message.content for node in root] == list(TURNS)
    assert sorted(node.message.content for node in below) == [CHILD, "echo one", "echo two"]
    for node in root:
        assert sum(node.mask) == len(node.logprobs) > 0
        assert node.loss_weights is None
    for node in below:
        if setting == "mask":
            assert node.token_ids
            assert not any(node.mask)
            assert node.logprobs == []
        else:
            assert node.loss_weights == {"rl": [setting] * len(node.token_ids)}
    samples = [branch for branch in trace.branches if any(branch.sampled_mask)]
    assert len(samples) == (1 if setting == "mask" else 4)
