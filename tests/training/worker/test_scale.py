"""Many rollouts at once in one worker: a small `make bench-env` without figures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlm.testing import ChatRequest, ModelServer, finish, repl_block

# A worker imports verifiers, which takes ten seconds of CPU time.
pytestmark = pytest.mark.timeout(180)

ROLLOUTS = 64
LOOK = repl_block(
    'own = context.split()[1]\nsame = llm_query_batched([f"{own} {part}" for part in range(3)])'
)
ANSWER = finish(
    'f"{context.split()[1]} x {len(context.splitlines())}"',
    'assert same == [f"heard {own} {part}" for part in range(3)], same',
)


def policy(request: ChatRequest) -> str:
    if request.is_subcall:
        return f"heard {request.text}"
    return (LOOK, ANSWER)[request.turn]


@pytest.mark.parametrize("setting", ["mask", "direct"])
async def test_many_rollouts_at_once_are_scored_separately_and_leave_nothing(
    start_worker: Any, setting: str
) -> None:
    worker = start_worker(train_subcalls=setting)
    async with ModelServer(policy) as server:
        traces = await asyncio.gather(
            *(worker.run(server, number, lines=50 + number) for number in range(ROLLOUTS))
        )
    for number, trace in enumerate(traces):
        info = trace.info["rlm"]
        assert trace.ok, (number, trace.errors)
        assert trace.reward == 1.0, (number, info)
        assert info["answer"] == f"{number} x {50 + number}"
        assert info["stats"]["subcalls"] == 3
        assert info["stats"]["cell_errors"] == 0
        others = [node.message.content for node in trace.nodes if node.message.content.startswith("heard ")]
        assert all(text.startswith(f"heard {number} ") for text in others)
        assert len(others) == (0 if setting == "direct" else 3)
    assert await worker.left_by_rollouts() == []
