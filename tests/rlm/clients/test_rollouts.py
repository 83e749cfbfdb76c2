"""A whole rollout over each provider: turns, a sub-call, a token limit for every call, usage, thinking that is sent back."""

from __future__ import annotations

from typing import Any

import pytest

from rlm import RLM
from rlm.testing import finish, repl_block
from rlm.types import StopReason

from . import test_anthropic, test_gateways, test_gemini
from .conftest import WireServer

FIRST = repl_block("word = llm_query('one word')\nprint(word)")
LAST = finish("word * 2")
MODELS = {"anthropic": test_anthropic.MODEL, "gemini": test_gemini.MODEL}


def server_for(backend: str) -> WireServer:
    """Plays the two turns of the root and the sub-call between them."""
    if backend == "anthropic":
        thought = test_anthropic.THOUGHT
        answers: list[Any] = [
            test_anthropic.answer(thought, FIRST),
            test_anthropic.answer("ha"),
            test_anthropic.answer(thought, LAST),
        ]
        return WireServer(answers, check=test_anthropic.check)
    if backend == "gemini":
        signed = {"text": "", "thoughtSignature": test_gemini.SIGNED["thoughtSignature"]}
        return WireServer(
            [test_gemini.answer(FIRST, signed), test_gemini.answer("ha"), test_gemini.answer(LAST)]
        )
    return WireServer([test_gateways.answer(text) for text in (FIRST, "ha", LAST)])


def options_for(backend: str, server: WireServer) -> dict[str, Any]:
    key = {"anthropic": test_anthropic.KEY, "gemini": test_gemini.KEY}.get(backend, test_gateways.KEY)
    url = {"azure_endpoint": server.url} if backend == "azure_openai" else {"base_url": server.url}
    return {"model_name": MODELS.get(backend, "gpt-4.1"), "api_key": key, "max_retries": 0, **url}


def chat_of(body: Any) -> list[Any]:
    """The turns of a request without cache marks, which move to the last turn."""
    turns = body.get("messages") or body.get("contents")
    for turn in turns:
        for block in turn["content"] if isinstance(turn.get("content"), list) else []:
            block.pop("cache_control", None)
    return list(turns)


@pytest.mark.parametrize(
    "backend", ["openai", "vllm", "openrouter", "vercel", "portkey", "azure_openai", "anthropic", "gemini"]
)
async def test_a_rollout_runs_over_each_provider(backend: str) -> None:
    async with server_for(backend) as server:
        rlm = RLM(
            backend=backend,
            backend_kwargs=options_for(backend, server),
            max_tokens=200_000,
            max_budget=10.0,
            prices={"gpt-4.1": {"input": 2, "output": 8}},
        )
        completion = await rlm.acompletion("x" * 50, "?")
        bodies = [request.body for request in server.requests]
    assert (completion.response, completion.stop) == ("haha", StopReason.ANSWERED)
    assert len(bodies) == 3
    summary = completion.usage_summary
    assert (summary.total_calls, summary.total_input_tokens) == (3, 30)
    assert summary.total_cost is not None
    assert summary.total_cost > 0
    first, _, last = (chat_of(body) for body in bodies)
    assert last[: len(first)] == first  # so that prefix caches hit
    if backend == "anthropic":
        said = next(turn for turn in last if turn["role"] == "assistant")
        assert said["content"] == [test_anthropic.THOUGHT, {"type": "text", "text": FIRST}]
    if backend == "gemini":
        said = next(turn for turn in last if turn["role"] == "model")
        assert [part.get("thoughtSignature") for part in said["parts"]] == [
            None,
            test_gemini.SIGNED["thoughtSignature"],
        ]


@pytest.mark.parametrize(
    ("backend", "refusal"),
    [
        ("anthropic", test_anthropic.answer(stop="refusal")),
        ("gemini", {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 10}}),
        ("openai", test_gateways.answer(None, refusal="I will not.")),
    ],
)
async def test_a_refused_sub_call_is_one_failed_item(backend: str, refusal: dict[str, Any]) -> None:
    async with server_for(backend) as server:
        server.answers[1] = refusal
        completion = await RLM(backend=backend, backend_kwargs=options_for(backend, server)).acompletion(
            "x", "?"
        )
    assert "refused" in completion.response
    assert (completion.stats.subcalls, completion.stats.subcall_failures) == (1, 1)
