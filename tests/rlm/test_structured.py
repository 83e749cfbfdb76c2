"""Answers of a form: `response_format`."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from pydantic import BaseModel

from rlm import RLM
from rlm.errors import AnswerFormatError, ConfigError
from rlm.structured import AnswerFormat
from rlm.testing import ChatRequest, ScriptedClient
from rlm.types import RLMChatCompletion, StopReason


class Count(BaseModel):
    label: str
    count: int


class Event(BaseModel):
    day: datetime.date
    tags: tuple[str, ...] = ()


SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "count": {"type": "integer", "minimum": 0}},
    "required": ["label", "count"],
}


def block(code: str) -> str:
    return f"```repl\n{code}\n```"


async def run(
    turns: list[str], response_format: Any, **options: Any
) -> tuple[RLMChatCompletion, list[ChatRequest]]:
    client = ScriptedClient(lambda request: turns[min(request.turn, len(turns) - 1)], model="m")
    async with RLM(client=client, **options) as rlm:
        completion = await rlm.acompletion("text", "How many?", response_format=response_format)
    return completion, client.requests


GOOD = block("import json\nanswer.update(content=json.dumps({'label': 'spam', 'count': 3}), ready=True)")
BAD = block("answer.update(content='about three', ready=True)")


async def test_a_pydantic_model_comes_back_as_its_instance() -> None:
    completion, requests = await run([GOOD], Count)
    assert completion.parsed == Count(label="spam", count=3)
    assert json.loads(completion.response) == {"label": "spam", "count": 3}
    assert '"count"' in requests[0].messages[1]["content"]


async def test_a_schema_gives_plain_data() -> None:
    completion, _ = await run([GOOD], SCHEMA)
    assert completion.parsed == {"label": "spam", "count": 3}


async def test_a_mismatch_goes_back_to_the_model() -> None:
    completion, requests = await run([BAD, GOOD], Count)
    assert completion.parsed == Count(label="spam", count=3)
    assert completion.stats.turns == 2
    told = requests[1].text
    assert "does not have the form" in told
    assert "not JSON" in told
    assert completion.iterations[0].final_answer is None


async def test_plain_values_count_as_json() -> None:
    code = "answer['content'] = {'label': 'spam', 'count': 3}\nanswer['ready'] = True"
    completion, _ = await run([block(code)], Count)
    assert completion.parsed == Count(label="spam", count=3)


async def test_the_last_word_is_checked_too_and_may_be_said_twice() -> None:
    turns = [block("1"), "I think three", '```json\n{"label": "spam", "count": 3}\n```']
    completion, requests = await run(turns, Count, max_iterations=1)
    assert completion.parsed == Count(label="spam", count=3)
    assert completion.stop is StopReason.MAX_ITERATIONS
    assert "Reply once more" in requests[2].text


async def test_an_answer_that_never_fits_is_an_error_with_all_there_is() -> None:
    with pytest.raises(AnswerFormatError, match="not JSON") as caught:
        await run([BAD, "about three"], Count, max_iterations=1)
    assert caught.value.partial_answer == "about three"
    assert caught.value.completion is not None
    assert caught.value.completion.parsed is None


async def test_a_plain_call_has_a_form_too() -> None:
    completion, requests = await run(['{"label": "spam", "count": 3}'], SCHEMA, max_depth=0)
    assert completion.parsed == {"label": "spam", "count": 3}
    assert "JSON schema" in requests[0].text


def test_what_json_has_no_type_for_is_read_as_pydantic_reads_it() -> None:
    parsed, problem = AnswerFormat(Event).parse('{"day": "2026-11-23", "tags": ["a", "b"]}')
    assert problem is None
    assert parsed == Event(day=datetime.date(2026, 11, 23), tags=("a", "b"))
    assert AnswerFormat(list[int]).parse("[1, 2]") == ([1, 2], None)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"label": "spam"}', "count"),
        ('{"label": "spam", "count": -1}', "minimum"),
        ('{"label": 3, "count": 3}', "label"),
        ("{'label': open('x')}", "not JSON"),
    ],
)
def test_what_is_wrong_is_said(answer: str, problem: str) -> None:
    value, said = AnswerFormat(SCHEMA).parse(answer)
    assert value is None
    assert problem in (said or "")


def test_openais_form_is_taken() -> None:
    form = AnswerFormat({"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}})
    assert form.parse('{"label": "spam", "count": 3}') == ({"label": "spam", "count": 3}, None)


@pytest.mark.parametrize(
    ("response_format", "word"),
    [
        ({"type": "nothing"}, "not a valid JSON schema"),
        ({"type": "json_object"}, "says nothing"),
        ({"type": "json_schema"}, "json_schema.schema"),
        ("json", "pydantic model"),
        (Count(label="a", count=1), "has no JSON schema"),
    ],
)
def test_a_format_that_is_none_is_refused(response_format: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        AnswerFormat(response_format)
