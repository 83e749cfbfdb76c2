"""The form of an answer: `response_format`."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from rlm import RLM
from rlm.engine.answer_format import AnswerFormat
from rlm.errors import AnswerFormatError, ConfigError
from rlm.testing import ChatRequest, ScriptedClient, finish, repl_block
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


async def run(
    turns: list[str], response_format: Any, **options: Any
) -> tuple[RLMChatCompletion, list[ChatRequest]]:
    client = ScriptedClient(lambda request: turns[min(request.turn, len(turns) - 1)], model="m")
    async with RLM(client=client, **options) as rlm:
        completion = await rlm.acompletion("text", "How many?", response_format=response_format)
    return completion, client.requests


GOOD = finish("json.dumps({'label': 'spam', 'count': 3})", "import json")
BAD = finish("'about three'")


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
    completion, _ = await run([repl_block(code)], Count)
    assert completion.parsed == Count(label="spam", count=3)


async def test_an_answer_without_code_is_checked_and_may_be_corrected_once() -> None:
    turns = [repl_block("1"), "I think three", '```json\n{"label": "spam", "count": 3}\n```']
    completion, requests = await run(turns, Count, max_iterations=1)
    assert completion.parsed == Count(label="spam", count=3)
    assert completion.stop is StopReason.MAX_ITERATIONS
    assert "Reply once more" in requests[2].text


async def test_an_answer_that_never_fits_raises_an_error_with_the_completion() -> None:
    with pytest.raises(AnswerFormatError, match="not JSON") as caught:
        await run([BAD, "about three"], Count, max_iterations=1)
    assert caught.value.partial_answer == "about three"
    assert caught.value.completion is not None
    assert caught.value.completion.parsed is None


async def test_a_plain_call_is_checked_too() -> None:
    completion, requests = await run(['{"label": "spam", "count": 3}'], SCHEMA, max_depth=0)
    assert completion.parsed == {"label": "spam", "count": 3}
    assert "JSON schema" in requests[0].text


def test_dates_tuples_and_enums_are_read_as_pydantic_reads_them() -> None:
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
        ('{"label": "spam", "count": 3, "share": NaN}', "not JSON"),
        ('{"label": "spam", "count": 3, "share": 1e999}', "not JSON"),
        ("{'label': 'spam', 'count': 3, 'share': 1e999}", "not JSON"),
    ],
)
def test_each_mismatch_is_described(answer: str, problem: str) -> None:
    value, said = AnswerFormat(SCHEMA).parse(answer)
    assert value is None
    assert problem in (said or "")


def test_a_schema_may_be_wrapped_as_in_openais_api() -> None:
    form = AnswerFormat({"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}})
    assert form.parse('{"label": "spam", "count": 3}') == ({"label": "spam", "count": 3}, None)


@pytest.mark.parametrize(
    ("response_format", "word"),
    [
        ({"type": "nothing"}, "not a valid JSON schema"),
        ({"type": "json_object"}, "does not say the form"),
        ({"type": "json_schema"}, "json_schema.schema"),
        ("json", "pydantic model"),
        (Count(label="a", count=1), "has no JSON schema"),
        (list["Unheard"], "has no JSON schema"),  # type: ignore[name-defined]  # noqa: F821
        ({"const": datetime.date(2026, 11, 28)}, "is no JSON: Object of type date"),
        ({"enum": [float("nan")]}, "is no JSON"),
        ({"$ref": "#/$defs/Missing"}, "a \\$ref to '#/\\$defs/Missing', which is not in it"),
        ({"properties": {"a": {"items": {"$ref": "#/nowhere"}}}}, "'#/nowhere', which is not in it"),
        ({"$defs": {"a": {"items": {"$ref": "#/x"}}}, "$ref": "#/$defs/a"}, "'#/x', which is not in it"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "schemas elsewhere are not loaded"),
        ({"$ref": "#/allOf/first", "allOf": [{}]}, "'#/allOf/first', which is not in it"),
        ({"$ref": "#/title", "title": "Count"}, "is a str and no schema"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"anyOf": [{"type": "null"}, {"not": {"$ref": "#"}}]}, "refers to itself without end"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "refers to itself without end"),
    ],
)
async def test_an_invalid_format_is_refused_before_a_model_is_called(response_format: Any, word: str) -> None:
    client = ScriptedClient(lambda _: GOOD)
    async with RLM(client=client) as rlm:
        with pytest.raises(ConfigError, match=word):
            await rlm.acompletion("text", "How many?", response_format=response_format)
    assert client.requests == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {
            "$ref": "#/$defs/n",
            "$defs": {"n": {"$anchor": "n", "properties": {"next": {"$dynamicRef": "#n"}}}},
        },
        {"$id": "http://a.b/c", "$defs": {"d": {"$id": "d", "type": "object"}}, "$ref": "d"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "dependencies": {"next": ["next"], "other": {"$ref": "#/definitions/o"}},
            "definitions": {"o": {"type": "object"}},
        },
    ],
)
def test_references_within_a_schema_are_followed(schema: dict[str, Any]) -> None:
    value: dict[str, Any] = {"next": {"next": {}}}
    assert AnswerFormat(schema).parse(json.dumps(value)) == (value, None)


class Known(BaseModel):
    label: str

    @field_validator("label")
    @classmethod
    def _check(cls, label: str) -> str:
        return {"spam": "SPAM"}[label]


async def test_an_exception_of_a_validator_goes_back_to_the_model() -> None:
    wrong = finish('\'{"label": "ham"}\'')
    right = finish('\'{"label": "spam"}\'')
    completion, requests = await run([wrong, right], Known)
    assert completion.parsed == Known.model_construct(label="SPAM")
    assert "the check of it failed: KeyError: 'ham'" in requests[1].text


def test_an_answer_that_is_nested_too_deep_is_a_mismatch() -> None:
    form = AnswerFormat({"type": ["object", "null"], "properties": {"next": {"$ref": "#"}}})
    deep = '{"next": ' * 900 + "null" + "}" * 900
    value, said = form.parse(deep)
    assert value is None
    assert "the check of it failed: RecursionError" in (said or "")
