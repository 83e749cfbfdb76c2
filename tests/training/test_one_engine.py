"""One engine, three uses: training and evaluation send the same messages as `rlm.RLM`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlm import RLM
from rlm.testing import ChatRequest, ModelServer, finish, repl_block

TURNS = (
    repl_block("print(type(context), len(context))\nprint(context)", "First a look."),
    repl_block(
        'replies = llm_query_batched([line + " é\\u2028" for line in context.split()])\nprint(replies)\n1/0'
    ),
    "Nothing to run here.",
    repl_block('print(rlm_query("how many?"))\nprint("x" * 50_000)'),
    finish("len(replies)"),
)


def policy(request: ChatRequest) -> str:
    if request.is_subcall:
        return f"label of {request.text}"
    if "of 9 characters" in request.messages[1]["content"]:
        return finish("context.upper()")
    return TURNS[request.turn]


def sent(server: ModelServer) -> list[bytes]:
    """The messages of every request as bytes: the root's in order, then the others, sorted."""
    lists = [json.dumps(request.messages, ensure_ascii=False).encode() for request in server.requests]
    root = [line for line in lists if b"Question: How many fruits?" in line]
    return root + sorted(line for line in lists if line not in root)


@pytest.mark.parametrize("max_depth", [1, 2])
async def test_the_harness_sends_the_messages_that_the_engine_sends(
    run: Any, task: Any, max_depth: int
) -> None:
    through_harness = ModelServer(policy)
    trace = await run(policy, server=through_harness, max_depth=max_depth)
    async with ModelServer(policy) as direct:
        rlm = RLM(
            backend="vllm",
            backend_kwargs={"model_name": direct.model, "base_url": direct.base_url},
            max_depth=max_depth,
        )
        completion = await rlm.acompletion(task().data.materialise(), root_prompt="How many fruits?")
    assert completion.response == trace.info["rlm"]["answer"] == "3"
    assert len(direct.requests) == 5 + 3 + 1
    assert sent(through_harness) == sent(direct)
    assert [m["content"] for m in completion.messages] == [
        trace.nodes[node].message.content for node in trace.info["rlm"]["root_nodes"]
    ]
