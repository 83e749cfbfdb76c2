"""The chat format without a server."""

from __future__ import annotations

import json
from email.utils import formatdate
from time import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.clients import chat_format
from rlm.clients.base import ModelReply
from rlm.clients.failures import Failure, excerpt, failure_of
from rlm.errors import (
    BadReplyError,
    ContextLengthError,
    ModelNotFoundError,
    ModelUnavailableError,
)
from rlm.types import Message, Usage


def decode(message: dict[str, Any], usage: Any = None, **choice: Any) -> ModelReply:
    body = {"choices": [{"message": message, **choice}], "usage": usage}
    reply = chat_format.decode_reply(json.dumps(body).encode(), model="m", request_bytes=40, retries=0)
    assert isinstance(reply, ModelReply)
    return reply


any_text = st.text(alphabet=st.characters(codec=None, categories=None))


@given(any_text)
def test_every_string_can_be_sent(text: str) -> None:
    body = chat_format.encode_request("m", [{"role": "user", "content": text}], {})
    arrived = json.loads(body)["messages"][0]["content"]
    arrived.encode()  # fails if a surrogate was sent
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert arrived == text


@given(st.binary(max_size=200) | any_text.map(lambda t: t.encode(errors="replace")))
def test_no_body_crashes_the_reader(body: bytes) -> None:
    for status in (400, 404, 409, 429, 500):
        failure = failure_of(status, {}, body)
        assert failure.error.status == status
        assert len(str(failure.error)) < 600
    with pytest.raises(BadReplyError) as caught:
        chat_format.decode_reply(body, model="m", request_bytes=1, retries=0)
    assert len(str(caught.value)) < 600


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "text", "error", "code", "usage", "cost", "prompt_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_json_crashes_the_reader(value: Any) -> None:
    body = json.dumps(value).encode()
    assert failure_of(400, {}, body).error.status == 400
    chat_format.decode_models(body)
    try:
        outcome = chat_format.decode_reply(body, model="m", request_bytes=1, retries=0)
    except BadReplyError:
        return
    assert isinstance(outcome, ModelReply | Failure)


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": "a"}, "a"),
        ({"content": []}, ""),
        (
            {
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image"},
                    {"type": "text", "text": "b"},
                    "c",
                ]
            },
            "abc",
        ),
        ({"content": None, "tool_calls": [{"id": "1"}]}, ""),
    ],
)
def test_content_is_read_in_every_form(message: dict[str, Any], content: str) -> None:
    assert decode(message).content == content


def test_reasoning_and_refusal_are_read() -> None:
    assert decode({"content": None, "reasoning_content": "r"}, finish_reason="length").reasoning == "r"
    assert decode({"content": "a", "reasoning": "r", "reasoning_content": None}).reasoning == "r"
    assert decode({"content": "a", "reasoning_content": ""}).reasoning is None
    assert decode({"content": None, "refusal": "no"}).refusal == "no"
    assert decode({"content": [{"type": "refusal", "refusal": "no"}]}).refusal == "no"
    assert decode({"content": None}, finish_reason="length").finish_reason == "length"
    assert decode({"content": "a"}, finish_reason=7).finish_reason is None


def test_cached_tokens_and_cost_are_read() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 8},
        "cost": 0.25,
    }
    assert decode({"content": "a"}, usage).usage == Usage(10, 2, 0.25, 8)
    assert decode({"content": "a"}, {**usage, "prompt_tokens_details": None, "cost": None}).usage == Usage(
        10, 2
    )


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": "2"},
        {"prompt_tokens": 10**400, "completion_tokens": 2**63, "cost": 10**400},
        [1],
    ],
)
def test_missing_usage_is_estimated(usage: Any) -> None:
    # The request has 40 bytes and the reply 5, at 4 bytes for a token.
    assert decode({"content": "four", "reasoning": "!"}, usage).usage == Usage(10, 2)


@pytest.mark.parametrize(
    "message",
    [
        # vLLM, old and new; through verifiers 0.4 as well
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
        "You passed 8193 input tokens. However, the model's context length is only 8192.",
        "upstream 400: {'error': {'message': \"This model's maximum context length is 5 tokens\"}}",
        "Prompt length (9000) exceeds maximum context length (8192).",
        # SGLang, TGI, llama.cpp, Anthropic
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096",
        "the request exceeds the available context size, try increasing it",
        "prompt is too long: 210000 tokens > 200000 maximum",
        # OpenAI, Gemini, xAI, Bedrock and Groq behind gateways
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300010 tokens.",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
        "Input is too long for requested model.",
        "Please reduce the length of the messages or completion.",
    ],
)
def test_every_wording_of_a_long_prompt_is_a_context_length_error(message: str) -> None:
    for body in (
        {"error": {"message": message}},
        {"object": "error", "message": message},
        {"error": message},
    ):
        failure = failure_of(400, {}, json.dumps(body).encode())
        assert isinstance(failure.error, ContextLengthError), message
        assert not failure.retry


def test_openais_code_for_a_long_prompt_is_a_context_length_error() -> None:
    body = {"error": {"message": "Too much.", "code": "context_length_exceeded"}}
    assert isinstance(failure_of(400, {}, json.dumps(body).encode()).error, ContextLengthError)


def test_an_unknown_model_may_be_a_400() -> None:
    body = {"error": {"message": "x/y is not a valid model ID", "code": 400}}
    assert isinstance(failure_of(400, {}, json.dumps(body).encode()).error, ModelNotFoundError)


def test_retry_after_may_be_a_date() -> None:
    failure = failure_of(503, {"retry-after": formatdate(time() + 100, usegmt=True)}, b"")
    assert isinstance(failure.error, ModelUnavailableError)
    assert failure.wait is not None
    assert 50 < failure.wait <= 100


@pytest.mark.parametrize("value", ["soon", "", "-5", "nan", "inf", "1e400"])
def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    assert failure_of(503, {"retry-after": value}, b"").wait is None


def test_an_excerpt_is_one_short_printable_line() -> None:
    assert excerpt(b"a\n\tb\x00\xff") == "a b\ufffd\ufffd"
    assert len(excerpt("x" * 10_000)) == 300


def test_image_tokens_count_as_input() -> None:
    url = "data:image/png;base64,aGk="
    parts: list[Message] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    assert json.loads(chat_format.encode_request("m", parts, {}))["messages"] == parts


@pytest.mark.parametrize(
    ("message", "flagged"),
    [
        ({"error": {"message": "m", "code": "content_filter"}}, True),
        ({"error": {"message": "about content_filter settings", "code": "invalid_value"}}, False),
    ],
)
def test_a_refusal_is_known_by_its_code(message: dict[str, Any], flagged: bool) -> None:
    assert (failure_of(400, {}, json.dumps(message).encode()).refusal is not None) is flagged
