"""Compaction of histories that near the end of the window."""

from __future__ import annotations

from typing import Any

import pytest

from rlm import RLM, events
from rlm.errors import ContextLengthError
from rlm.testing import FINISH, ChatRequest, Fault, Reply, ScriptedClient, repl_block
from rlm.types import RLMChatCompletion, StopReason

LONG = repl_block("notes = 'kept'\nprint('line\\n' * 1000)")


def is_request(request: ChatRequest) -> bool:
    return "notes alone" in request.text


class Plays:
    """Prints a long text in every turn before the last one, and writes notes when it is asked for them."""

    def __init__(self, last: int, notes: str | Fault = "seen: nothing yet; `notes` holds 'kept'") -> None:
        self.last = last
        self.notes = notes
        self.turns = 0
        self.requests: list[ChatRequest] = []

    def __call__(self, request: ChatRequest) -> str | Reply | Fault:
        self.requests.append(request)
        if is_request(request):
            return self.notes
        self.turns += 1
        return FINISH if self.turns >= self.last else LONG


async def run(model: Any, **options: Any) -> tuple[RLMChatCompletion, list[events.Event]]:
    client = ScriptedClient(model, model="m", max_model_len=8_000)
    seen = []
    async with RLM(client=client, compaction=True, **options) as rlm:
        async for event in rlm.stream("text", "What is it?"):
            seen.append(event)
    assert isinstance(event, events.Completed)
    return event.completion, seen


async def test_notes_replace_the_turns_and_the_question_stays() -> None:
    model = Plays(last=12)
    completion, seen = await run(model, user_prologue="A prologue.")
    assert completion.response == "done"
    assert completion.stats.turns == 12
    compactions = [event for event in seen if isinstance(event, events.Compaction)]
    assert len(compactions) == completion.stats.compactions >= 2
    assert compactions[0].tokens_after < compactions[0].tokens_before
    assert compactions[0].summary == model.notes
    after = model.requests[[is_request(r) for r in model.requests].index(True) + 1].messages
    assert [message["role"] for message in after] == ["system", "user"]
    first = after[1]["content"]
    assert first.startswith("A prologue.\n\nQuestion: What is it?")
    assert "`notes` holds 'kept'" in first
    assert "Turn " in first.rpartition("The last output:")[2]
    assert sum(event.type == "reply" for event in seen) == 12 + len(compactions)


async def test_the_request_for_notes_extends_the_history() -> None:
    """So the prefix cache of the server hits."""
    model = Plays(last=6)
    await run(model)
    place = [is_request(r) for r in model.requests].index(True)
    before, request = model.requests[place - 1].messages, model.requests[place].messages
    assert request[: len(before)] == before
    assert [message["role"] for message in request[len(before) :]] == ["assistant", "user"]


async def test_the_code_finds_the_full_history() -> None:
    seen: list[str] = []

    def model(request: ChatRequest) -> str:
        if is_request(request):
            seen.append("notes")
            return "notes"
        if seen:
            code = "answer.update(content=str([len(history), history[-1][1]['content'][:8]]), ready=True)"
            return repl_block(code)
        return LONG

    completion, _ = await run(model)
    assert completion.response == "[1, 'Question']"


async def test_the_run_goes_on_if_the_notes_fail() -> None:
    completion, seen = await run(Plays(last=8, notes=Fault(400, "this model has a bad day")))
    assert completion.response == "done"
    summaries = [event.summary for event in seen if isinstance(event, events.Compaction)]
    assert set(summaries) == {""}


async def test_a_history_whose_notes_are_too_long_is_compacted_once() -> None:
    model = Plays(last=50, notes="word " * 5_500)
    client = ScriptedClient(model, model="m", max_model_len=8_000)
    async with RLM(client=client, compaction=True, compaction_threshold_pct=0.3) as rlm:
        with pytest.raises(ContextLengthError) as caught:
            await rlm.acompletion("text", "What?")
    completion = caught.value.completion
    assert completion is not None
    assert completion.stats.compactions == 1
    assert completion.stop is StopReason.CONTEXT_LENGTH


async def test_the_history_of_a_child_run_is_compacted_too() -> None:
    def model(request: ChatRequest) -> str:
        if is_request(request):
            return "notes"
        text = request.messages[1]["content"]
        if "Context: a str of 5 " not in text:
            return FINISH if request.turn else repl_block("rlm_query('piece')")
        return FINISH if "Your notes" in text else LONG

    _, seen = await run(model, max_depth=2)
    assert [event.depth for event in seen if isinstance(event, events.Compaction)] == [1]


async def test_without_the_option_nothing_is_compacted() -> None:
    client = ScriptedClient(Plays(last=50), model="m", max_model_len=8_000)
    async with RLM(client=client) as rlm:
        with pytest.raises(ContextLengthError):
            await rlm.acompletion("text", "What?")
