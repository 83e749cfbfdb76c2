"""Backends of the OpenAI-compatible format: URLs, keys and dialects."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from rlm.clients import make_client
from rlm.clients.openai import OpenAIClient
from rlm.errors import AuthenticationError, ConfigError, ContextLengthError, ModelError, ModelNotFoundError
from rlm.testing import ModelServer, Reply, Script
from rlm.types import Message, Usage

from .conftest import Sent, Status, WireServer

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
KEY = "sk-very-secret"
PNG = "data:image/png;base64,iVBORw0KGgo="
IMAGE: list[Message] = [
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]}
]


def answer(
    content: str | None = "hi", *, usage: Any = None, finish: str = "stop", **message: Any
) -> dict[str, Any]:
    counts = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, **(usage or {})}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish,
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": counts,
    }


def error(message: str, code: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": code, **more}
    }


def client_of(backend: str, url: str, **options: Any) -> OpenAIClient:
    given = {"model_name": "m", "api_key": KEY, "base_url": url, "retry_delay": 0.001, **options}
    client = make_client(backend, **{name: value for name, value in given.items() if value is not None})
    assert isinstance(client, OpenAIClient)
    return client


def bearer(sent: Sent) -> str | None:
    return None if sent.headers.get("authorization") == f"Bearer {KEY}" else "no bearer token"


# compared with OpenAI's SDK


def shape(sent: Sent) -> tuple[str, dict[str, str], Any]:
    """The parts of a request that belong to the format: path, headers and body."""
    names = ("authorization", "api-key", "content-type", "accept")
    return sent.path, {name: sent.headers[name] for name in names if name in sent.headers}, sent.body


CALLS: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "plain": ([{"role": "system", "content": "s"}, *HELLO], {"temperature": 0.5, "max_tokens": 7}),
    "image": (IMAGE, {"max_tokens": 7, "seed": 1}),
    "text of all kinds": (
        [{"role": "user", "content": 'é\U0001f600\n"\\\x00\u2028'}],
        {"max_tokens": 1, "stop": ["a"]},
    ),
    "extra_body": (HELLO, {"max_tokens": 1, "extra_body": {"top_k": 4, "min_p": 0.1}}),
    "a schema": (
        HELLO,
        {"max_tokens": 9, "response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
    ),
}


@pytest.mark.parametrize("call", CALLS)
async def test_the_wire_format_is_that_of_openais_sdk(call: str) -> None:
    messages, sampling = CALLS[call]
    async with WireServer([answer()]) as server:
        sdk = openai.AsyncOpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0)
        async with sdk:
            theirs: Any = sdk.chat.completions
            await theirs.create(model="m", messages=messages, **sampling)
        await client_of("vllm", f"{server.url}/v1").complete(messages, sampling=sampling)
        first, second = server.requests
    assert shape(first) == shape(second)


@pytest.mark.parametrize("version", [None, "2024-10-21"])
async def test_the_wire_format_for_azure_is_that_of_openais_sdk(version: str | None) -> None:
    sampling: dict[str, Any] = {"max_completion_tokens": 7}
    async with WireServer([answer()]) as server:
        common: Any = {"azure_endpoint": server.url, "azure_deployment": "dep loy/1", "api_version": version}
        if version:
            sdk: Any = openai.AsyncAzureOpenAI(api_key=KEY, max_retries=0, **common)
        else:
            sdk = openai.AsyncOpenAI(
                api_key=KEY,
                base_url=f"{server.url}/openai/v1",
                default_headers={"api-key": KEY},
                max_retries=0,
            )
        async with sdk:
            await sdk.chat.completions.create(model="dep loy/1", messages=HELLO, **sampling)
        await client_of("azure_openai", server.url, base_url=None, **common).complete(
            HELLO, sampling={"max_tokens": 7}
        )
        first, second = server.requests
    path, headers, body = shape(first)
    if not version:  # the SDK always sends Authorization too; Azure reads api-key
        headers.pop("authorization")
    assert (path, headers, body) == shape(second)
    assert first.query == second.query == ({"api-version": version} if version else {})


async def test_openais_sdk_reads_what_our_test_server_sends() -> None:
    usage = Usage(10, 2, 0.5, 8)
    async with (
        ModelServer(Script([Reply("hi", usage=usage)])) as server,
        openai.AsyncOpenAI(api_key="none", base_url=server.base_url) as sdk,
    ):
        completion = await sdk.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "hello"}]
        )
        models = [model.id async for model in sdk.models.list()]
    assert completion.choices[0].message.content == "hi"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (10, 2)
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 8
    assert models == ["scripted"]


# the two names of the token limit

UNSUPPORTED = error(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "unsupported_parameter",
    param="max_tokens",
)


@pytest.mark.parametrize(
    ("backend", "first", "second", "status", "refusal"),
    [
        ("vllm", "max_tokens", "max_completion_tokens", 400, UNSUPPORTED),
        (
            "azure_openai",
            "max_completion_tokens",
            "max_tokens",
            400,
            error("Unrecognized request argument supplied: max_completion_tokens"),
        ),
        (
            "azure_openai",
            "max_completion_tokens",
            "max_tokens",
            422,
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "max_completion_tokens"],
                        "msg": "Extra inputs",
                    }
                ]
            },
        ),
    ],
)
async def test_a_server_that_refuses_one_limit_field_gets_the_other_from_then_on(
    backend: str, first: str, second: str, status: int, refusal: Any
) -> None:
    async with WireServer([Status(status, refusal), answer()]) as server:
        client = client_of(backend, server.url)
        for _ in range(2):
            reply = await client.complete(HELLO, sampling={"max_tokens": 7})
            assert (reply.content, reply.retries) == ("hi", 0)
        assert [request.body.get(first) for request in server.requests] == [7, None, None]
        assert [request.body.get(second) for request in server.requests] == [None, 7, 7]


async def test_the_other_limit_field_is_tried_once_and_forgotten_if_it_fails() -> None:
    async with WireServer([Status(400, UNSUPPORTED)]) as server:
        client = client_of("vllm", server.url)
        for _ in range(2):
            with pytest.raises(ModelError, match="Unsupported parameter"):
                await client.complete(HELLO, sampling={"max_tokens": 7})
        assert ["max_tokens" in request.body for request in server.requests] == [True, False, True, False]


@pytest.mark.parametrize(
    ("sampling", "options"), [({}, {}), ({"max_tokens": 7}, {"max_tokens_field": "max_tokens"})]
)
async def test_the_other_limit_field_is_not_tried_without_a_limit_or_with_a_fixed_field(
    sampling: Any, options: Any
) -> None:
    async with WireServer([Status(400, UNSUPPORTED)]) as server:
        with pytest.raises(ModelError, match="Unsupported parameter"):
            await client_of("vllm", server.url, **options).complete(HELLO, sampling=sampling)
        assert len(server.requests) == 1


async def test_a_limit_that_is_too_large_does_not_change_its_field() -> None:
    message = (
        "'max_tokens' or 'max_completion_tokens' is too large: 9. This model's maximum context length is 8 tokens and your "
        "request has 5 input tokens (9 > 8 - 5)."
    )
    async with WireServer([Status(400, error(message))]) as server:
        with pytest.raises(ContextLengthError):
            await client_of("vllm", server.url).complete(HELLO, sampling={"max_tokens": 9})
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("backend", "options", "field"),
    [
        ("vllm", {}, "max_tokens"),
        ("openai", {}, "max_tokens"),  # a server that is not OpenAI's
        ("openrouter", {}, "max_tokens"),
        ("vllm", {"max_tokens_field": "max_completion_tokens"}, "max_completion_tokens"),
    ],
)
async def test_each_backend_has_its_limit_field(backend: str, options: Any, field: str) -> None:
    async with WireServer([answer()]) as server:
        client = client_of(backend, server.url, sampling_args={"max_completion_tokens": 50}, **options)
        await client.complete(HELLO, sampling={"max_tokens": 7})
        await client.complete(HELLO, sampling={"max_tokens": 70})
        given = [{k: v for k, v in r.body.items() if k.startswith("max_")} for r in server.requests]
        assert given == [{field: 7}, {field: 50}]


async def test_openai_gets_max_completion_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with WireServer([answer()]) as server:
        monkeypatch.setattr("rlm.clients.gateways.OPENAI_URL", server.url)
        await client_of("openai", server.url, base_url=None).complete(HELLO, sampling={"max_tokens": 7})
        assert server.last["max_completion_tokens"] == 7
        assert "max_tokens" not in server.last


# each gateway


async def test_openrouter_is_asked_for_the_cost_and_reports_it() -> None:
    usage = {
        "cost": 0.002,
        "cost_details": {"upstream_inference_cost": None},
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    }
    own_key = {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}
    async with WireServer([answer(usage=usage), answer(usage=own_key)], check=bearer) as server:
        client = client_of("openrouter", server.url, app_url="https://app.example", app_title="App")
        assert client.reports_cost
        assert (await client.complete(HELLO)).usage == Usage(10, 2, 0.002, 4, 3)
        # With the user's own key OpenRouter and the provider both charge.
        assert (await client.complete(HELLO)).usage.cost == pytest.approx(0.021)
        sent = server.requests[0]
    assert sent.body["usage"] == {"include": True}
    assert (sent.headers["http-referer"], sent.headers["x-openrouter-title"]) == (
        "https://app.example",
        "App",
    )


async def test_openrouters_signed_thinking_is_sent_back_to_openrouter_only() -> None:
    details = [{"type": "reasoning.text", "text": "hm", "signature": "c2ln", "index": 0}]
    async with WireServer([answer(reasoning="hm", reasoning_details=details)]) as server:
        client = client_of("openrouter", server.url, echo_reasoning=True)
        reply = await client.complete(HELLO)
        assert reply.reasoning == "hm"
        message: Message = json.loads(json.dumps(reply.message))
        await client.complete([*HELLO, message])
        assert server.last["messages"][1] == {
            "role": "assistant",
            "content": "hi",
            "reasoning_details": details,
        }
        for other, model in (("openrouter", "another"), ("vllm", None)):
            await client_of(other, server.url).complete([*HELLO, message], model=model)
            assert server.last["messages"][1] == {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (Status(403, {"error": {"code": 403, "message": "Key limit exceeded"}}), AuthenticationError),
        (Status(402, {"error": {"code": 402, "message": "Insufficient credits"}}), ModelError),
        (Status(400, {"error": {"code": 400, "message": "x/y is not a valid model ID"}}), ModelNotFoundError),
    ],
)
async def test_openrouters_errors_have_their_kinds(body: Status, kind: type[ModelError]) -> None:
    async with WireServer([body]) as server:
        with pytest.raises(kind):
            await client_of("openrouter", server.url).complete(HELLO)


async def test_an_error_of_the_provider_behind_openrouter_is_retried() -> None:
    failed = answer("")
    failed["choices"][0].update(finish_reason="error", error={"code": 502, "message": "Upstream broke"})
    async with WireServer([failed, answer()]) as server:
        assert (await client_of("openrouter", server.url).complete(HELLO)).retries == 1


@pytest.mark.parametrize(
    ("backend", "refusal", "words"),
    [
        (
            "openrouter",
            Status(
                403,
                {
                    "error": {
                        "code": 403,
                        "message": "Flagged.",
                        "metadata": {"reasons": ["x"], "flagged_input": "hel"},
                    }
                },
            ),
            "Flagged.",
        ),
        (
            "azure_openai",
            Status(400, error("The response was filtered.", "content_filter")),
            "The response was filtered.",
        ),
        (
            "openai",
            Status(400, error("Invalid prompt: flagged.", "invalid_prompt")),
            "Invalid prompt: flagged.",
        ),
        (
            "portkey",
            Status(446, {"error": {"message": "The guardrail checks failed", "type": "hooks_failed"}}),
            "The guardrail",
        ),
    ],
)
async def test_a_prompt_that_the_provider_refuses_is_a_refusal(
    backend: str, refusal: Status, words: str
) -> None:
    async with WireServer([refusal]) as server:
        reply = await client_of(backend, server.url).complete(HELLO)
        assert (reply.content, reply.finish_reason) == ("", "content_filter")
        assert reply.refusal is not None
        assert words in reply.refusal
        cost = 0.0 if backend == "openrouter" else None
        assert reply.usage == Usage(-(-len(server.requests[0].raw) // 4), 0, cost)
        assert len(server.requests) == 1


async def test_a_reply_without_text_says_why() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answers = [
        answer(None, tool_calls=[call], finish="tool_calls"),
        answer(None, refusal="No."),
        answer("part", finish="content_filter"),
        answer(None, finish="length"),
    ]
    async with WireServer(answers) as server:
        client = client_of("openai", server.url)
        replies = [await client.complete(HELLO) for _ in answers]
    assert [(r.content, r.finish_reason, r.refusal) for r in replies] == [
        ("", "tool_calls", None),
        ("", "stop", "No."),
        ("part", "content_filter", None),
        ("", "length", None),
    ]


async def test_vercel_gets_its_url_key_and_model() -> None:
    listing = {"data": [{"id": "openai/gpt-5", "context_window": 400_000}, {"id": "b", "context_window": 1}]}
    async with WireServer([answer()], check=bearer, listing=listing) as server:
        client = client_of("vercel", f"{server.url}/v1", model_name="openai/gpt-5")
        assert (await client.complete(HELLO)).content == "hi"
        assert await client.context_length() == 400_000
        assert server.last["model"] == "openai/gpt-5"


async def test_portkey_gets_its_key_and_routing_headers() -> None:
    async with WireServer([answer()]) as server:
        client = client_of(
            "portkey",
            server.url,
            provider="openai",
            provider_api_key="sk-provider",
            config={"retry": {"attempts": 3}},
        )
        await client.complete(HELLO)
        await client_of("portkey", server.url, virtual_key="vk-1", config="pc-1").complete(HELLO)
        first, second = server.requests
    assert first.headers["x-portkey-api-key"] == second.headers["x-portkey-api-key"] == KEY
    assert first.headers["x-portkey-provider"] == "openai"
    assert first.headers["authorization"] == "Bearer sk-provider"
    assert json.loads(first.headers["x-portkey-config"]) == {"retry": {"attempts": 3}}
    assert (second.headers["x-portkey-virtual-key"], second.headers["x-portkey-config"]) == ("vk-1", "pc-1")
    assert "authorization" not in second.headers


async def test_azure_books_under_the_models_name_and_asks_the_deployment() -> None:
    async with WireServer([answer()], listing={"data": [{"id": "base", "context_length": 5}]}) as server:
        client = client_of(
            "azure_openai",
            server.url,
            base_url=None,
            azure_endpoint=f"{server.url}/openai/v1/",
            azure_deployment="mine",
        )
        reply = await client.complete(HELLO)
        assert reply.model == client.model == "m"
        assert server.last["model"] == "mine"
        assert server.requests[0].path == "/openai/v1/chat/completions"
        assert server.requests[0].headers["api-key"] == KEY
        assert "authorization" not in server.requests[0].headers
        # Azure lists base models, but a request names a deployment.
        assert await client.context_length() is None
        assert server.listed == []


async def test_azure_names_a_model_that_is_not_deployed() -> None:
    missing = Status(404, error("The API deployment for this resource does not exist.", "DeploymentNotFound"))
    async with WireServer([missing]) as server:
        client = client_of(
            "azure_openai", server.url, base_url=None, azure_endpoint=server.url, api_version="2024-10-21"
        )
        with pytest.raises(ModelNotFoundError, match="is it deployed there"):
            await client.complete(HELLO)
        assert server.requests[0].path == "/openai/deployments/m/chat/completions"


@pytest.mark.parametrize(
    ("backend", "variables"),
    [
        ("openai", {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "URL/v1"}),
        ("openrouter", {"OPENROUTER_API_KEY": KEY}),
        ("vercel", {"AI_GATEWAY_API_KEY": KEY}),
        ("portkey", {"PORTKEY_API_KEY": KEY}),
        (
            "azure_openai",
            {"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_ENDPOINT": "URL", "AZURE_OPENAI_DEPLOYMENT": "d"},
        ),
        (
            "azure_openai",
            {
                "AZURE_OPENAI_API_KEY": KEY,
                "AZURE_OPENAI_ENDPOINT": "URL",
                "AZURE_OPENAI_API_VERSION": "2024-10-21",
            },
        ),
    ],
)
async def test_azure_can_be_configured_by_the_environment(
    backend: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=next(iter(variables))):
        make_client(backend, model_name="m")
    async with WireServer([answer()]) as server:
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("URL", server.url))
        knows_its_url = any("URL" in value for value in variables.values())
        options = {} if knows_its_url else {"base_url": server.url}
        assert (await make_client(backend, model_name="m", **options).complete(HELLO)).content == "hi"
        sent = server.requests[0]
        assert KEY in " ".join(sent.headers.values())
        if "AZURE_OPENAI_API_VERSION" in variables:
            assert sent.query == {"api-version": "2024-10-21"}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"azure_endpoint": "https://h"}, "azure_deployment"),
        ({"model_name": "m"}, "azure_endpoint"),
        ({"model_name": "m", "azure_endpoint": "https://h", "base_url": "https://h"}, "not both"),
        ({"model_name": "m", "base_url": "https://h", "api_version": "2024-10-21"}, "api_version"),
        ({"model_name": "m", "azure_endpoint": "https://h", "api_version": "a&b=c"}, "api_version"),
        ({"model_name": "m", "azure_endpoint": "h.openai.azure.com"}, "https?://"),
        (
            {"model_name": "m", "azure_endpoint": "https://h", "azure_deploymnt": "d"},
            "did you mean 'azure_deployment'",
        ),
    ],
)
def test_wrong_azure_options_are_refused(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        make_client("azure_openai", api_key=KEY, **options)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}},
        {"type": "image_url", "image_url": {"url": "data:image/png,raw"}},
        {"type": "image_url", "image_url": {"url": "/home/me/a.png"}},
        {"type": "image_url", "image_url": "https://h/a.png"},
        {"type": "input_audio", "input_audio": {"data": "a", "format": "wav"}},
        {"type": "text"},
        {"text": "a"},
        "a",
        None,
    ],
)
async def test_an_unreadable_message_part_is_refused_before_sending(part: Any) -> None:
    async with WireServer([answer()]) as server:
        with pytest.raises(ConfigError, match="part"):
            await client_of("vllm", server.url).complete([{"role": "user", "content": [part]}])
        assert server.requests == []
