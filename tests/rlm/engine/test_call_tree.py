"""Random trees of calls: what they spend is counted once, and held by the limits."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm import RLM
from rlm.clients.base import ModelReply
from rlm.errors import BudgetExceededError, RLMError, TokenLimitExceededError
from rlm.testing import FINISH, ChatRequest, ScriptedClient, repl_block
from rlm.testing.tokens import count_tokens, render
from rlm.types import RLMChatCompletion, SamplingArgs, Usage

PRICE = {"input": 2.0, "output": 8.0}


@dataclass(frozen=True)
class Node:
    """A run: the batches of plain calls that each turn makes, and the runs below it."""

    batches: list[list[int]]
    """Words that each prompt of a batch has."""
    children: list[Node]
    words: int
    """Of the reply, besides code."""


def nodes(depth: int) -> st.SearchStrategy[Node]:
    batches = st.lists(st.lists(st.integers(1, 400), max_size=12), max_size=2)
    below = st.lists(nodes(depth - 1), max_size=2) if depth else st.just([])
    return st.builds(Node, batches, below, st.integers(0, 200))


@dataclass
class Server:
    """A model whose calls are counted where they are served."""

    limit: float = float("inf")
    spent: Usage = field(default_factory=Usage)
    calls: int = 0
    uncapped: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)
    """Tokens that each call may take."""
    allowance: int = 0
    """Tokens that the calls may take together that are in flight when the limit is crossed."""


class Counting(ScriptedClient):
    """Counts what is served."""

    def __init__(self, server: Server) -> None:
        super().__init__(self._policy, model="m")
        self._server = server

    async def complete(
        self, messages: Any, *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        server, me = self._server, object()
        cap = (sampling or {}).get("max_tokens")
        server.uncapped += cap is None
        server.in_flight[id(me)] = count_tokens(render(messages)) + (cap or 0)
        reply = await super().complete(messages, sampling=sampling, model=model)
        if server.spent.total_tokens <= server.limit < (server.spent + reply.usage).total_tokens:
            server.allowance = sum(server.in_flight.values())
        del server.in_flight[id(me)]
        server.spent += reply.usage
        server.calls += 1
        return reply

    async def _policy(self, request: ChatRequest) -> str:
        await asyncio.sleep(0)
        if request.is_subcall:
            return "ab " * (len(request.text) % 97)
        if request.turn:
            return FINISH
        return repl_block(_CODE)


_CODE = """
import json
node = json.loads(context)
for batch in node["batches"]:
    llm_query_batched(["ab " * words for words in batch])
rlm_query_batched([json.dumps(child) for child in node["children"]])
"""


def as_json(node: Node) -> Any:
    return {
        "batches": node.batches,
        "children": [as_json(child) for child in node.children],
        "words": node.words,
    }


async def play(tree: Node, server: Server, **options: Any) -> RLMChatCompletion | RLMError:
    async with RLM(client=Counting(server), max_depth=4, max_iterations=3, **options) as rlm:
        try:
            return await rlm.acompletion(json.dumps(as_json(tree)), "Do it.")
        except RLMError as error:
            return error


def usage_of(ended: RLMChatCompletion | RLMError) -> tuple[int, int, int]:
    completion = ended.completion if isinstance(ended, RLMError) else ended
    assert completion is not None
    summary = completion.usage_summary
    return summary.total_calls, summary.total_input_tokens, summary.total_output_tokens


RANDOM = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@RANDOM
@given(nodes(2))
def test_usage_adds_up_to_what_the_server_counted(tree: Node) -> None:
    server = Server()
    ended = asyncio.run(play(tree, server))
    assert isinstance(ended, RLMChatCompletion)
    assert usage_of(ended) == (server.calls, server.spent.input_tokens, server.spent.output_tokens)


@RANDOM
@given(nodes(2), st.integers(500, 12_000))
def test_no_tree_spends_more_tokens_than_its_limit_and_what_is_in_flight(tree: Node, limit: int) -> None:
    server = Server(limit)
    ended = asyncio.run(play(tree, server, max_tokens=limit))
    assert server.uncapped == 0
    assert server.spent.total_tokens <= limit + server.allowance
    assert usage_of(ended) == (server.calls, server.spent.input_tokens, server.spent.output_tokens)
    assert isinstance(ended, RLMChatCompletion | TokenLimitExceededError)


@RANDOM
@given(nodes(2), st.integers(500, 12_000), st.integers(1, 200))
def test_no_tree_whose_calls_are_capped_spends_more_tokens_than_its_limit(
    tree: Node, limit: int, cap: int
) -> None:
    """The scripted model counts fewer tokens than are claimed for a prompt (a token is four characters to it, and "ab " one
    token to a claim), so that nothing is overshot at all."""
    server = Server(limit)
    options = {"sampling_args": {"max_tokens": 300}, "sub_sampling_args": {"max_tokens": cap}}
    ended = asyncio.run(play(tree, server, max_tokens=limit, **options))
    assert server.spent.total_tokens <= limit
    assert usage_of(ended) == (server.calls, server.spent.input_tokens, server.spent.output_tokens)
    assert isinstance(ended, RLMChatCompletion | TokenLimitExceededError)


@RANDOM
@given(nodes(2), st.floats(0.002, 0.05))
def test_no_tree_costs_more_than_its_budget(tree: Node, budget: float) -> None:
    server = Server()
    options = {"sampling_args": {"max_tokens": 300}, "prices": {"m": PRICE}}
    ended = asyncio.run(play(tree, server, max_budget=budget, **options))
    cost = (server.spent.input_tokens * PRICE["input"] + server.spent.output_tokens * PRICE["output"]) / 1e6
    assert cost <= budget + 1e-9
    completion = ended.completion if isinstance(ended, RLMError) else ended
    assert completion is not None
    assert abs((completion.usage_summary.total_cost or 0.0) - cost) < 1e-9
    assert isinstance(ended, RLMChatCompletion | BudgetExceededError)


@RANDOM
@given(nodes(2), st.integers(0, 20))
def test_no_tree_makes_more_sub_calls_than_it_may(tree: Node, most: int) -> None:
    server = Server()
    ended = asyncio.run(play(tree, server, max_subcalls=most))
    assert isinstance(ended, RLMChatCompletion)
    assert ended.stats.subcalls <= most
    assert ended.response == "done"
