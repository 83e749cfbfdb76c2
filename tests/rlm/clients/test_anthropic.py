"""The Anthropic client with the real SDK, against a server that refuses what the Messages API refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlm.clients import make_client
from rlm.clients.anthropic import AnthropicClient
from rlm.errors import AuthenticationError, ConfigError, ModelUnavailableError
from rlm.types import Message, Usage

from .conftest import Answer, Sent, WireServer

MODEL = "claude-opus-5"
KEY = "sk-ant-very-secret"
SYSTEM: Message = {"role": "system", "content": "Be brief."}
HELLO: Message = {"role": "user", "content": "hello"}
AGAIN: Message = {"role": "user", "content": "and now?"}
PNG = "data:image/png;base64,iVBORw0KGgo="
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmF0dXJl"}
HIDDEN = {"type": "redacted_thinking", "data": "b3BhcXVl"}

_FIELDS = {
    *(
        "model",
        "messages",
        "max_tokens",
        "system",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "thinking",
    ),
    *("metadata", "output_config", "service_tier"),
}


def answer(*blocks: dict[str, Any] | str, stop: str = "end_turn", **usage: int) -> dict[str, Any]:
    content = [
        {"type": "text", "text": block, "citations": None} if isinstance(block, str) else block
        for block in blocks
    ]
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": f"{MODEL}-20260724",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 3, **usage},
    }


def check(sent: Sent) -> str | None:
    """The fault for which the Messages API refuses a request; None if there is none."""
    body = sent.body
    if sent.path != "/v1/messages":
        return f"path {sent.path}"
    if KEY not in (
        sent.headers.get("x-api-key"),
        sent.headers.get("authorization", "").removeprefix("Bearer "),
    ):
        return "no key"
    if not sent.headers.get("anthropic-version"):
        return "no anthropic-version"
    if unknown := body.keys() - _FIELDS:
        return f"{min(unknown)}: Extra inputs are not permitted"
    if type(body.get("max_tokens")) is not int or body["max_tokens"] < 1:
        return "max_tokens: Field required"
    thinking = body.get("thinking", {})
    if thinking.get("type") == "enabled" and not 1024 <= thinking["budget_tokens"] < body["max_tokens"]:
        return "thinking.budget_tokens: must be at least 1024 and less than max_tokens"
    system = body.get("system", [])
    if not isinstance(system, list) or any(
        block["type"] != "text" or not block["text"].strip() for block in system
    ):
        return "system: must be text blocks that are not empty"
    if not body.get("messages") or body["messages"][0]["role"] != "user":
        return "messages: must begin with the user"
    marks = sum("cache_control" in block for block in system)
    for message in body["messages"]:
        if message.keys() != {"role", "content"} or message["role"] not in ("user", "assistant"):
            return f"messages: {sorted(message)}"
        if not message["content"]:
            return "messages: must have non-empty content"
        for block in message["content"]:
            marks += "cache_control" in block
            if fault := check_block(block, message["role"]):
                return fault
        if message["content"][-1]["type"] in ("thinking", "redacted_thinking"):
            return "messages: the final block in an assistant message cannot be thinking"
    return "more than 4 blocks with cache_control" if marks > 4 else None


def check_block(block: dict[str, Any], role: str) -> str | None:
    kind = block["type"]
    plain = {name: value for name, value in block.items() if name != "cache_control"}
    if kind == "text":
        return None if block["text"].strip() and plain.keys() == {"type", "text"} else f"text: {block}"
    if kind in ("thinking", "redacted_thinking"):
        return (
            None if role == "assistant" and block in (THOUGHT, HIDDEN) else f"thinking was changed: {block}"
        )
    if kind == "image" and role == "user":
        source = block["source"]
        if source["type"] == "url":
            return None if source.keys() == {"type", "url"} else f"image: {source}"
        fine = source.keys() == {"type", "media_type", "data"} and source["type"] == "base64"
        return None if fine and not source["data"].startswith("data:") else f"image: {source}"
    return f"a block of type {kind} by the {role}"


def serve(*answers: Answer, **options: Any) -> WireServer:
    return WireServer(answers or [answer("hi")], check=check, **options)


def client_of(server: WireServer, **options: Any) -> AnthropicClient:
    client = make_client(
        "anthropic", model_name=MODEL, api_key=KEY, base_url=server.url, **{"retry_delay": 0.001, **options}
    )
    assert isinstance(client, AnthropicClient)
    return client


async def test_a_call_sends_the_chat_and_reads_the_reply() -> None:
    async with serve(
        answer("hi ", "there", cache_read_input_tokens=70, cache_creation_input_tokens=20)
    ) as server:
        client = client_of(server, sampling_args={"top_k": 4}, default_headers={"X-Team": "7"})
        reply = await client.complete(
            [SYSTEM, HELLO], sampling={"max_tokens": 50, "temperature": 0.5, "stop": "END"}
        )
    assert (reply.content, reply.model, reply.finish_reason, reply.retries) == ("hi there", MODEL, "stop", 0)
    # The API counts what its cache read and wrote apart from the other input.
    assert reply.usage == Usage(100, 3, None, 70, 20)
    assert (reply.reasoning, reply.refusal) == (None, None)
    assert reply.message == {"role": "assistant", "content": "hi there"}
    body = server.last
    assert body["model"] == MODEL
    assert [block["text"] for block in body["system"]] == ["Be brief."]
    assert [(m["role"], m["content"][0]["text"]) for m in body["messages"]] == [("user", "hello")]
    given = {name: body[name] for name in ("max_tokens", "temperature", "top_k", "stop_sequences")}
    assert given == {"max_tokens": 50, "temperature": 0.5, "top_k": 4, "stop_sequences": ["END"]}
    assert server.requests[0].headers["x-team"] == "7"


async def test_thinking_is_read_apart_and_sent_back_unchanged() -> None:
    async with serve(answer(THOUGHT, HIDDEN, "hi")) as server:
        client = client_of(server)
        sampling = {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 4000}
        reply = await client.complete([SYSTEM, HELLO], sampling=sampling)
        assert (reply.content, reply.reasoning) == ("hi", "hm")
        message: Message = json.loads(json.dumps(reply.message))  # as after a log
        await client.complete([SYSTEM, HELLO, message, AGAIN], sampling=sampling)
        assert server.last["messages"][1]["content"] == [THOUGHT, HIDDEN, {"type": "text", "text": "hi"}]
        # Another model cannot read signed thinking, so it is not sent.
        await client.complete([SYSTEM, HELLO, message, AGAIN], model="claude-haiku-4-5")
        assert server.last["messages"][1]["content"] == [{"type": "text", "text": "hi"}]


async def test_a_reply_of_thinking_alone_is_not_sent_back() -> None:
    async with serve(answer(THOUGHT, stop="max_tokens"), answer("hi")) as server:
        client = client_of(server)
        reply = await client.complete([HELLO], sampling={"thinking": {"type": "adaptive"}})
        assert (reply.content, reply.finish_reason, reply.reasoning) == ("", "length", "hm")
        await client.complete([HELLO, reply.message, AGAIN])
        assert [message["role"] for message in server.last["messages"]] == ["user", "user"]


async def test_a_turn_reads_the_cache_that_the_turn_before_wrote() -> None:
    async with serve() as server:
        client = client_of(server)
        chat = [SYSTEM, HELLO]
        await client.complete(chat)
        await client.complete([*chat, {"role": "assistant", "content": "hi"}, AGAIN])
        first, second = (request.body for request in server.requests)
        for body in (first, second):
            assert "cache_control" in body["system"][-1]
            marked = [
                i for i, m in enumerate(body["messages"]) if any("cache_control" in b for b in m["content"])
            ]
            assert marked == [len(body["messages"]) - 1]
        # The next request begins with everything that was marked, unchanged.
        for body in (first, second):
            for message in body["messages"]:
                for block in message["content"]:
                    block.pop("cache_control", None)
        assert second["messages"][: len(first["messages"])] == first["messages"]


async def test_single_messages_are_not_cached_and_caching_can_be_off() -> None:
    async with serve() as server:
        await client_of(server).complete([HELLO])
        await client_of(server, prompt_caching=False).complete(
            [SYSTEM, HELLO, {"role": "assistant", "content": "a"}, AGAIN]
        )
        assert all(b"cache_control" not in request.raw for request in server.requests)


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause_turn"),
    ],
)
async def test_stop_reasons_become_finish_reasons(stop: str, finish: str) -> None:
    async with serve(answer("hi", stop=stop)) as server:
        reply = await client_of(server).complete([HELLO])
    assert (reply.content, reply.finish_reason, reply.refusal) == ("hi", finish, None)


async def test_a_refusal_is_reported_and_not_sent_back() -> None:
    refused = {
        **answer("I", stop="refusal"),
        "stop_details": {"type": "refusal", "category": "bio", "explanation": "Not this."},
    }
    plain = answer(stop="refusal")
    async with serve(refused, plain, answer("hi")) as server:
        client = client_of(server)
        reply = await client.complete([HELLO])
        assert (reply.content, reply.finish_reason, reply.refusal) == ("", "content_filter", "Not this.")
        assert reply.usage.output_tokens == 3
        assert (await client.complete([HELLO])).refusal == "the provider ended the reply"
        await client.complete([HELLO, reply.message, AGAIN])
        assert [message["content"][0]["text"] for message in server.last["messages"]] == ["hello", "and now?"]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({"input_tokens": -5, "output_tokens": -1}, None),
        ({"input_tokens": "a", "output_tokens": 10**400}, None),
        ({"input_tokens": 7, "output_tokens": None, "cache_read_input_tokens": -1}, 7),
    ],
)
async def test_missing_usage_is_estimated(usage: Any, expected: int | None) -> None:
    async with serve({**answer("12345"), "usage": usage}) as server:
        reply = await client_of(server).complete([HELLO])
        estimate = -(-len(server.requests[0].raw) // 4)
    assert reply.usage == Usage(estimate if expected is None else expected, 2)


async def test_an_error_inside_a_200_is_raised_as_that_error() -> None:
    def wrapped(kind: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": kind, "message": "so it is"}}

    async with serve(wrapped("overloaded_error"), answer("hi")) as server:
        reply = await client_of(server, retry_delay=0.0).complete([HELLO])
    assert (reply.content, reply.retries) == ("hi", 1)
    async with serve(wrapped("authentication_error")) as server:
        with pytest.raises(AuthenticationError, match="so it is"):
            await client_of(server).complete([HELLO])
    async with serve(wrapped("something_new")) as server:
        with pytest.raises(ModelUnavailableError, match="so it is"):
            await client_of(server, max_retries=0).complete([HELLO])


async def test_a_reply_that_asks_for_a_tool_has_no_text() -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    async with serve(answer(THOUGHT, call, stop="tool_use")) as server:
        reply = await client_of(server).complete([HELLO])
    assert (reply.content, reply.finish_reason, reply.echo) == ("", "tool_calls", None)


async def test_images_are_sent_as_the_provider_takes_them() -> None:
    parts: Message = {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://h/a.webp"}},
        ],
    }
    async with serve() as server:
        await client_of(server).complete([parts])
        assert server.last["messages"][0]["content"] == [
            {"type": "text", "text": "What is this?"},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": PNG.partition(",")[2]},
            },
            {"type": "image", "source": {"type": "url", "url": "https://h/a.webp"}},
        ]


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/bmp;base64,aGk="}}],
            },
            "image/bmp",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,a-k="}}],
            },
            "base64",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}],
            },
            "audio/wav",
        ),
        ({"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}, "system message"),
        ({"role": "user", "content": [{"type": "video"}]}, "a part of a message must be"),
        ({"role": "user", "content": 5}, "must be a str or a list"),
        ({"role": "system", "content": "alone"}, "besides the system prompt"),
    ],
)
async def test_a_message_that_cannot_be_sent_is_refused_before_sending(message: Any, hint: str) -> None:
    async with serve() as server:
        with pytest.raises(ConfigError, match=hint):
            await client_of(server).complete([message])
        assert server.requests == []


async def test_empty_messages_and_repeated_roles_are_sent() -> None:
    chat: list[Message] = [
        {"role": "user", "content": " "},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "a\ud800b"},
        {"role": "system", "content": ""},
    ]
    async with serve() as server:
        await client_of(server).complete(chat)
        assert [m["content"][0]["text"] for m in server.last["messages"]] == ["(empty)", "a\ufffdb"]
        assert "system" not in server.last


@pytest.mark.parametrize(
    ("sampling", "limit", "thinking"),
    [
        ({}, 16_000, None),
        ({"max_completion_tokens": 70}, 70, None),
        ({"max_tokens": 70, "max_completion_tokens": 50}, 50, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, 16_000, 5000),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 6000}, 6000, 5000),
        # The run has fewer tokens left than the budget: the limit holds, and the budget is made smaller.
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 4000}, 4000, 2000),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 1500}, 1500, 1024),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 1024}, 1024, None),
    ],
)
async def test_the_thinking_budget_fits_the_token_limit(
    sampling: dict[str, Any], limit: int, thinking: int | None
) -> None:
    async with serve() as server:
        await client_of(server).complete([HELLO], sampling=sampling)
        assert server.last["max_tokens"] == limit
        assert server.last.get("thinking", {}).get("budget_tokens") == thinking


async def test_the_default_token_limit_is_an_option_and_known_before_a_call() -> None:
    async with serve() as server:
        client = client_of(server, max_tokens=99, sampling_args={"top_k": 1})
        assert client.sampling_args == {"max_tokens": 99, "top_k": 1}
        await client.complete([HELLO])
        assert server.last["max_tokens"] == 99
        too_much = {"thinking": {"type": "enabled", "budget_tokens": 5000}}
        with pytest.raises(ConfigError, match="give a larger max_tokens"):
            await client.complete([HELLO], sampling=too_much)
        with pytest.raises(ConfigError, match="give a larger max_tokens"):
            client_of(server, max_tokens=99, sampling_args=too_much)


async def test_the_window_comes_from_the_list_of_models() -> None:
    def listing(path: str) -> Any:
        info = {
            "id": MODEL,
            "type": "model",
            "display_name": "x",
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
        }
        return {**info, "max_input_tokens": 500_000} if path == f"/v1/models/{MODEL}" else None

    async with serve(listing=listing) as server:
        client = client_of(server)
        assert await client.context_length() == 500_000
        assert await client.context_length() == 500_000
        assert await client.context_length("unknown") is None
        assert server.listed == [f"/v1/models/{MODEL}", "/v1/models/unknown"]


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"max_tokens": "many"}, {"sampling_args": {"system": "x"}}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)) if "max_tokens" in options else "system"):
        make_client("anthropic", model_name=MODEL, api_key=KEY, **options)
