"""The scripted model of the benchmarks. The question says what it does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlm.testing import FINISH, ChatRequest, finish, repl_block

ONE_TURN = "one turn"
FIVE_TURNS = "five turns"
BATCH = "1000 sub-calls"
SEQUENCE = "sub-calls one by one"
CALLS = 200
"""Number of sub-calls in a sequence."""

_STEP = repl_block("x = len(context)")
_ASK = finish(
    "'done'",
    "r = llm_query_batched(['p'] * 1000)\nassert len(r) == 1000 and all(len(s) == 2 for s in r), r[:3]",
)
_ONE_BY_ONE = finish(
    f"(time.perf_counter() - started) * 1e3 / {CALLS}",
    f"import time\nstarted = time.perf_counter()\nfor i in range({CALLS}): llm_query('p')",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The model calls of a rollout of the environment."""

    turns: int
    """Turns of the root. The first one makes the sub-calls; the last one answers with the first line of the context."""
    subcalls: int
    at_once: int = 16
    """Sub-calls in flight at once; 16 is the default of the harness."""

    @property
    def question(self) -> str:
        return f"Shape: {self.turns} turns, {self.subcalls} sub-calls"

    @property
    def calls(self) -> int:
        return self.turns + self.subcalls


_SHAPE = re.compile(r"Shape: (\d+) turns, (\d+) sub-calls")


def shape_of(text: str) -> Shape:
    """The shape that a question asks for."""
    found = _SHAPE.search(text)
    if found is None:
        raise ValueError(f"the text names no shape: {text[:100]!r}")
    return Shape(int(found[1]), int(found[2]))


def policy(request: ChatRequest) -> str:
    """Replies as the root to a question that names a benchmark, and as a sub-model to all other prompts."""
    chat = "\n".join(str(message["content"]) for message in request.messages[:4])
    if len(request.messages) > 1 and _SHAPE.search(chat):
        return _root_of(shape_of(chat), request.turn)
    if FIVE_TURNS in chat:
        return FINISH if request.turn >= 4 else _STEP
    if BATCH in chat:
        return _ASK
    if SEQUENCE in chat:
        return _ONE_BY_ONE
    if ONE_TURN in chat:
        return FINISH
    return "ok"


def _root_of(shape: Shape, turn: int) -> str:
    if turn == 0 and shape.turns > 1:
        ask = f"r = llm_query_batched([f'p{{i}}' for i in range({shape.subcalls})])"
        return f"```repl\n{ask}\nassert set(r) == {{'ok'}}, r\n```"
    if turn < shape.turns - 1:
        return _STEP
    return '```repl\nanswer["content"], answer["ready"] = context[:context.index("\\n")], True\n```'
