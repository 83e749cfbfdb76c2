"""The scripted model of the benchmarks: what it does is written in the question."""

from __future__ import annotations

from rlm.testing import ChatRequest

ONE_TURN = "one turn"
FIVE_TURNS = "five turns"
BATCH = "1000 sub-calls"

_FINISH = '```repl\nanswer["content"] = "done"\nanswer["ready"] = True\n```'
_STEP = "```repl\nx = len(context)\n```"
_ASK = (
    "```repl\nr = llm_query_batched(['p'] * 1000)\nassert len(r) == 1000 and all(len(s) == 2 for s in r), r[:3]\n"
    'answer["content"] = "done"\nanswer["ready"] = True\n```'
)


def policy(request: ChatRequest) -> str:
    """Plays the root for a question that names the benchmark; anything else is a sub-call."""
    chat = "\n".join(str(message["content"]) for message in request.messages[:4])
    if FIVE_TURNS in chat:
        return _FINISH if request.turn >= 4 else _STEP
    if BATCH in chat:
        return _ASK
    if ONE_TURN in chat:
        return _FINISH
    return "ok"
