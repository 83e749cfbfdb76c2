"""Random trees of calls: every call is counted once, and the limits hold."""

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
    """A run: its batches of plain calls, and its child runs."""

    batches: list[list[int]]
    """The number of words of each prompt, by batch."""
    children: list[Node]
    words: int
    """The number of words of the reply, without its code."""


def nodes(depth: int) -> st.SearchStrategy[Node]:
    batches = st.lists(st.lists(st.integers(1, 400), max_size=12), max_size=2)
    below = st.lists(nodes(depth - 1), max_size=2) if depth else st.just([])
    return st.builds(Node, batches, below, st.integers(0, 200))


@dataclass
class Server:
    """Counts the calls of a model on the server's side."""

    limit: float = float("inf")
    spent: Usage = field(default_factory=Usage)
    calls: int = 0
    uncapped: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)
    """The most tokens of each call in flight."""
    allowance: int = 0
    """The most tokens of all calls in flight at the moment when the limit is crossed."""


class Counting(ScriptedClient):
    """Counts its calls in a `Server`."""

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
def test_a_tree_exceeds_its_token_limit_at_most_by_the_calls_in_flight(tree: Node, limit: int) -> None:
    server = Server(limit)
    ended = asyncio.run(play(tree, server, max_tokens=limit))
    assert server.uncapped == 0
    assert server.spent.total_tokens <= limit + server.allowance
    assert usage_of(ended) == (server.calls, server.spent.input_tokens, server.spent.output_tokens)
    assert isinstance(ended, RLMChatCompletion | TokenLimitExceededError)


@RANDOM
@given(nodes(2), st.integers(500, 12_000), st.integers(1, 200))
def test_a_tree_whose_calls_are_capped_stays_within_its_token_limit(tree: Node, limit: int, cap: int) -> None:
    """Nothing is overshot, because the scripted model counts fewer tokens for a prompt than the ledger claims: four characters
    are a token to the model, "ab " is a token to the ledger."""
    server = Server(limit)
    options = {"sampling_args": {"max_tokens": 300}, "sub_sampling_args": {"max_tokens": cap}}
    ended = asyncio.run(play(tree, server, max_tokens=limit, **options))
    assert server.spent.total_tokens <= limit
    assert usage_of(ended) == (server.calls, server.spent.input_tokens, server.spent.output_tokens)
    assert isinstance(ended, RLMChatCompletion | TokenLimitExceededError)


@RANDOM
@given(nodes(2), st.floats(0.002, 0.05))
def test_a_tree_stays_within_its_budget(tree: Node, budget: float) -> None:
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
def test_a_tree_stays_within_its_number_of_sub_calls(tree: Node, most: int) -> None:
    server = Server()
    ended = asyncio.run(play(tree, server, max_subcalls=most))
    assert isinstance(ended, RLMChatCompletion)
    assert ended.stats.subcalls <= most
    assert ended.response == "done"
