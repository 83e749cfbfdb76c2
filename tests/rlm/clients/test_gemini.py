"""The Gemini client with the real SDK, against a server that refuses what the Gemini API refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlm.clients import make_client
from rlm.clients.gemini import GeminiClient
from rlm.errors import ConfigError
from rlm.types import Message, Usage

from .conftest import Answer, Sent, WireServer

MODEL = "gemini-2.5-flash"
KEY = "AIza-very-secret"
SYSTEM: Message = {"role": "system", "content": "Be brief."}
HELLO: Message = {"role": "user", "content": "hello"}
AGAIN: Message = {"role": "user", "content": "and now?"}
PNG = "data:image/png;base64,iVBORw0KGgo="
THOUGHT = {"text": "hm", "thought": True}
SIGNED = {"text": "hi", "thoughtSignature": "c2lnbmVkIQ=="}

_FIELDS = {"contents", "systemInstruction", "generationConfig", "safetySettings"}
_CONFIG = {
    *(
        "temperature",
        "topP",
        "topK",
        "maxOutputTokens",
        "stopSequences",
        "seed",
        "thinkingConfig",
        "candidateCount",
    ),
    *("responseMimeType", "responseJsonSchema", "presencePenalty", "frequencyPenalty"),
}


def answer(*parts: dict[str, Any] | str, finish: str = "STOP", **usage: int) -> dict[str, Any]:
    content = [{"text": part} if isinstance(part, str) else part for part in parts]
    return {
        "candidates": [{"content": {"role": "model", "parts": content}, "finishReason": finish, "index": 0}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 3, "totalTokenCount": 13, **usage},
        "modelVersion": MODEL,
        "responseId": "r",
    }


def check(sent: Sent) -> str | None:
    """The fault for which the Gemini API refuses a request; None if there is none."""
    body = sent.body
    version, _, path = sent.path.lstrip("/").partition("/")
    if (
        version not in ("v1", "v1beta")
        or not path.startswith("models/")
        or not path.endswith(":generateContent")
    ):
        return f"path {sent.path}"
    if sent.headers.get("x-goog-api-key") != KEY or "key" in sent.query:
        return "no key in x-goog-api-key"
    if unknown := body.keys() - _FIELDS:
        return f'Unknown name "{min(unknown)}": Cannot find field.'
    config = body.get("generationConfig", {})
    if unknown := config.keys() - _CONFIG:
        return f"Unknown name \"{min(unknown)}\" at 'generation_config': Cannot find field."
    if "maxOutputTokens" in config and (
        type(config["maxOutputTokens"]) is not int or config["maxOutputTokens"] < 1
    ):
        return "max_output_tokens must be positive"
    if "systemInstruction" in body and not body["systemInstruction"].get("parts"):
        return "systemInstruction without parts"
    roles = [turn.get("role") for turn in body["contents"]]
    if not roles or roles != ["user", "model"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
        return f"turns must alternate and begin with the user: {roles}"
    for turn in body["contents"]:
        if turn.keys() != {"role", "parts"} or not turn["parts"]:
            return "contents.parts must not be empty"
        for part in turn["parts"]:
            if fault := check_part(part, turn["role"]):
                return fault
    return None


def check_part(part: dict[str, Any], role: str) -> str | None:
    if "text" in part:
        if part.keys() == {"text"}:
            return None if part["text"] else "an empty text"
        return None if role == "model" and part in (THOUGHT, SIGNED) else f"the part was changed: {part}"
    if part.keys() == {"inlineData"}:
        blob = {name.replace("mime_type", "mimeType"): value for name, value in part["inlineData"].items()}
        return (
            None if blob.keys() == {"mimeType", "data"} and ":" not in blob["data"] else f"inlineData: {blob}"
        )
    if part.keys() == {"fileData"}:
        return None if len(part["fileData"]) == 2 else f"fileData: {part}"
    return f"a part with {sorted(part)}"


def serve(*answers: Answer, **options: Any) -> WireServer:
    return WireServer(answers or [answer("hi")], check=check, **options)


def client_of(server: WireServer, **options: Any) -> GeminiClient:
    client = make_client(
        "gemini", model_name=MODEL, api_key=KEY, base_url=server.url, **{"retry_delay": 0.001, **options}
    )
    assert isinstance(client, GeminiClient)
    return client


async def test_a_call_sends_the_chat_and_reads_the_reply() -> None:
    usage: Any = {"thoughtsTokenCount": 40, "cachedContentTokenCount": 8, "toolUsePromptTokenCount": 5}
    async with serve(answer("hi ", "there", **usage)) as server:
        client = client_of(server, sampling_args={"top_k": 4}, default_headers={"X-Team": "7"})
        reply = await client.complete(
            [SYSTEM, HELLO], sampling={"max_tokens": 50, "temperature": 0.5, "stop": "END", "n": 1}
        )
    assert (reply.content, reply.model, reply.finish_reason, reply.retries) == ("hi there", MODEL, "stop", 0)
    # Thoughts count as output, because they are charged as output.
    assert reply.usage == Usage(15, 43, None, 8)
    assert (reply.reasoning, reply.refusal) == (None, None)
    assert reply.message == {"role": "assistant", "content": "hi there"}
    assert server.requests[0].path.endswith(f"/models/{MODEL}:generateContent")
    assert server.requests[0].headers["x-team"] == "7"
    assert server.last == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "generationConfig": {"maxOutputTokens": 50, "temperature": 0.5, "topK": 4, "stopSequences": ["END"]},
    }


async def test_thoughts_are_read_apart_and_signed_parts_are_sent_back_unchanged() -> None:
    async with serve(answer(THOUGHT, SIGNED)) as server:
        client = client_of(server)
        sampling = {"thinking_config": {"include_thoughts": True, "thinking_budget": 512}}
        reply = await client.complete([SYSTEM, HELLO], sampling=sampling)
        # JSON of protobuf accepts two names for each field. The SDK writes the other one here.
        assert server.last["generationConfig"]["thinkingConfig"] == {
            "include_thoughts": True,
            "thinking_budget": 512,
        }
        assert (reply.content, reply.reasoning) == ("hi", "hm")
        message: Message = json.loads(json.dumps(reply.message))  # as after a log
        await client.complete([SYSTEM, HELLO, message, AGAIN])
        assert server.last["contents"][1] == {"role": "model", "parts": [THOUGHT, SIGNED]}
        # Another model cannot read signed parts, so they are not sent.
        await client.complete([SYSTEM, HELLO, message, AGAIN], model="gemini-2.5-pro")
        assert server.last["contents"][1] == {"role": "model", "parts": [{"text": "hi"}]}


async def test_a_reply_of_thoughts_alone_is_not_sent_back() -> None:
    async with serve(answer(THOUGHT, finish="MAX_TOKENS"), answer("hi")) as server:
        client = client_of(server)
        reply = await client.complete([HELLO])
        assert (reply.content, reply.finish_reason, reply.reasoning) == ("", "length", "hm")
        await client.complete([HELLO, reply.message, AGAIN])
        assert server.last["contents"] == [
            {"role": "user", "parts": [{"text": "hello"}, {"text": "and now?"}]}
        ]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("OTHER", "other"),
        ("MALFORMED_FUNCTION_CALL", "malformed_function_call"),
    ],
)
async def test_finish_reasons_are_translated(finish: str, reason: str) -> None:
    async with serve(answer("hi", finish=finish)) as server:
        reply = await client_of(server).complete([HELLO])
    assert (reply.content, reply.finish_reason, reply.refusal) == ("hi", reason, None)


@pytest.mark.parametrize("finish", ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"])
async def test_a_reply_that_a_filter_ended_is_a_refusal(finish: str) -> None:
    async with serve(answer("partly", finish=finish)) as server:
        reply = await client_of(server).complete([HELLO])
    assert (reply.content, reply.finish_reason) == ("", "content_filter")
    assert reply.refusal == f"the provider's filter ended the reply: {finish}"
    assert reply.usage == Usage(10, 3)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({"promptFeedback": {"blockReason": "SAFETY"}}, "the provider's filter refused the prompt: SAFETY"),
        ({"promptFeedback": {"blockReason": "OTHER", "blockReasonMessage": "Not this."}}, "Not this."),
        ({"candidates": []}, "the provider sent no reply and no reason"),
        ({"candidates": [{"finishReason": "SAFETY"}]}, "the provider's filter ended the reply: SAFETY"),
    ],
)
async def test_a_blocked_prompt_is_a_refusal(body: dict[str, Any], refusal: str) -> None:
    async with serve({**body, "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 7}}) as server:
        reply = await client_of(server).complete([HELLO])
    assert (reply.content, reply.finish_reason, reply.refusal) == ("", "content_filter", refusal)
    assert reply.usage == Usage(7, 0)


async def test_a_reply_without_parts_or_usage_is_empty() -> None:
    async with serve({"candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}]}) as server:
        reply = await client_of(server).complete([HELLO])
        assert (reply.content, reply.finish_reason, reply.refusal) == ("", "stop", None)
        # Without reported usage there is an estimate, so that limits hold.
        assert reply.usage == Usage(-(-len(server.requests[0].raw) // 4), 0)


async def test_images_and_sounds_are_sent_as_parts() -> None:
    parts: Message = {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": PNG}},
            {"type": "image_url", "image_url": {"url": "https://h/a.webp?b=c"}},
            {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
        ],
    }
    async with serve() as server:
        await client_of(server).complete([parts])
        text, image, link, sound = server.last["contents"][0]["parts"]
    assert text == {"text": "What is this?"}
    assert set(image["inlineData"].values()) == {"image/png", PNG.partition(",")[2]}
    assert set(link["fileData"].values()) == {"image/webp", "https://h/a.webp?b=c"}
    assert set(sound["inlineData"].values()) == {"audio/wav", "aGk="}


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:text/html;base64,aGk="}}],
            },
            "text/html",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://h/image"}}]},
            "data URL",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://h/a.png"}}]},
            "ftp://",
        ),
        ({"role": "system", "content": "alone"}, "besides the system prompt"),
    ],
)
async def test_a_message_that_cannot_be_sent_is_refused_before_sending(message: Any, hint: str) -> None:
    async with serve() as server:
        with pytest.raises(ConfigError, match=hint):
            await client_of(server).complete([message])
        assert server.requests == []


@pytest.mark.parametrize(
    ("sampling", "hint"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": "hot"}, "temperature"),
        ({"thinking_config": {"budget": 5}}, r"thinking_config\.budget"),
        ({"system_instruction": "x"}, "the client sets it"),
        ({"candidate_count": 2}, "candidate_count"),
    ],
)
async def test_wrong_sampling_arguments_are_refused(sampling: dict[str, Any], hint: str) -> None:
    async with serve() as server:
        with pytest.raises(ConfigError, match=hint):
            client_of(server, sampling_args=sampling)
        with pytest.raises(ConfigError, match=hint):
            await client_of(server).complete([HELLO], sampling=sampling)
        assert server.requests == []


async def test_empty_messages_and_repeated_roles_are_sent() -> None:
    chat: list[Message] = [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "a\ud800b"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    async with serve() as server:
        await client_of(server).complete(chat)
        assert server.last["contents"] == [
            {"role": "user", "parts": [{"text": "(empty)"}, {"text": "a\ufffdb"}]},
            {"role": "model", "parts": [{"text": "c"}, {"text": "d"}]},
        ]


async def test_the_window_comes_from_the_list_of_models() -> None:
    def listing(path: str) -> Any:
        return (
            {"name": f"models/{MODEL}", "inputTokenLimit": 1_048_576}
            if path.endswith(f"/models/{MODEL}")
            else None
        )

    async with serve(listing=listing) as server:
        client = client_of(server)
        assert await client.context_length() == 1_048_576
        assert await client.context_length() == 1_048_576
        assert await client.context_length("unknown") is None
        assert len(server.listed) == 2
