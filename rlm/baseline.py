"""A model without a REPL: the baseline that a run is compared with."""

from __future__ import annotations

import time

from rlm.context import Context
from rlm.errors import ContextError, RLMError
from rlm.models import Model
from rlm.parsing import answer_text
from rlm.tree import Outcome, Tree, stop_reason
from rlm.types import Message, RunStats, StopReason


async def plain_call(tree: Tree, model: Model, context: Context, question: str | None) -> Outcome:
    """No REPL and no turns: the model gets the input as its prompt.

    Raises:
        ContextError: the input is no str.
    """
    if not isinstance(context.value, str):
        raise ContextError(f"max_depth=0 sends the input as the prompt: give a str, not a {context.kind}")
    text = context.value if question is None else f"{context.value}\n\n{question}"
    messages: list[Message] = [{"role": "user", "content": text}]
    stats = RunStats()
    started = time.perf_counter()
    response, stop, problem = "", StopReason.ANSWERED, None
    try:
        async with tree.ledger.guard():
            reply = await model.ask(messages, tree.ledger, root=True)
        messages.append(reply.message)
        response = answer_text(reply.content)
        stats.turns, stats.answered = 1, bool(response)
        stats.truncated = int(reply.finish_reason == "length")
    except RLMError as error:
        stop, problem = stop_reason(error), error
    stats.model_seconds = time.perf_counter() - started
    stats.root_input_tokens = tree.ledger.root.input_tokens
    stats.root_output_tokens = tree.ledger.root.output_tokens
    return Outcome(response, stop, problem, stats, messages, [])
