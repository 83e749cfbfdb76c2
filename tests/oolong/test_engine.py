"""The reference policy in the real engine, with model server, REPL process and sub-calls. A wrong answer is a bug in the
generator, the scorer or the engine."""

from __future__ import annotations

import asyncio

from oolong.example import Example
from oolong.generator import generate
from oolong.policies.reference import ReferencePolicy
from oolong.questions import CELLS
from oolong.scoring.scorers import score
from rlm import RLM
from rlm.testing import ModelServer, serve


async def scores_of(server: ModelServer, examples: list[Example]) -> list[float]:
    rlm = RLM(
        backend="vllm",
        backend_kwargs={"model_name": server.model, "base_url": server.base_url},
        max_iterations=8,
    )
    done = await asyncio.gather(
        *(rlm.acompletion(example.materialise(), root_prompt=example.question) for example in examples)
    )
    assert all(completion.stats.answered for completion in done)
    return [score(completion.response, example) for completion, example in zip(done, examples, strict=True)]


def test_every_kind_of_question_is_answered_right_through_the_engine() -> None:
    examples = generate(24, sizes=(6_000, 40_000), seed=31, split="eval")
    assert {(example.task_group, example.answer_type) for example in examples} == set(CELLS)
    with serve(ReferencePolicy(accuracy=1.0)) as server:
        assert asyncio.run(scores_of(server, examples)) == [1.0] * 24


def test_published_questions_are_answered_right_through_the_engine() -> None:
    examples = generate(8, mode="official", sizes=(150,), unit="rows", seed=31)
    with serve(ReferencePolicy(accuracy=1.0)) as server:
        assert asyncio.run(scores_of(server, examples)) == [1.0] * 8
