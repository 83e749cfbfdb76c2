"""The behaviour that all clients over vendors' SDKs share: errors, retries, keys, event loops."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from rlm.clients import Client, make_client
from rlm.clients.pool import open_pools
from rlm.errors import (
    AuthenticationError,
    BadReplyError,
    ConfigError,
    ContextLengthError,
    ModelError,
    ModelNotFoundError,
    ModelTimeoutError,
    ModelUnavailableError,
)
from rlm.types import Message

from . import test_anthropic, test_gemini
from .conftest import Answer, Hang, Status, WireServer

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
KEY = "sk-very-secret-key"


class Provider(NamedTuple):
    backend: str
    model: str
    reply: dict[str, Any]
    error: Callable[[int, str, str], Any]
    """The body of an error with a status, a code and a message."""


def anthropic_error(status: int, code: str, message: str) -> Any:
    return {"type": "error", "error": {"type": code, "message": message}, "request_id": "req_1"}


def gemini_error(status: int, code: str, message: str) -> Any:
    return {"error": {"code": status, "message": message, "status": code}}


ANTHROPIC = Provider("anthropic", "claude-opus-5", test_anthropic.answer("hi"), anthropic_error)
GEMINI = Provider("gemini", "gemini-2.5-flash", test_gemini.answer("hi"), gemini_error)

both = pytest.mark.parametrize("provider", [ANTHROPIC, GEMINI], ids=lambda provider: provider.backend)


def client_of(provider: Provider, url: str, **options: Any) -> Client:
    options = {"retry_delay": 0.001, **options}
    return make_client(provider.backend, model_name=provider.model, api_key=KEY, base_url=url, **options)


@both
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_temporary_faults_are_retried_by_the_client_and_not_by_the_sdk(
    provider: Provider, status: int
) -> None:
    fault = Status(status, provider.error(status, "overloaded_error", "Overloaded"))
    async with WireServer([fault, fault, provider.reply]) as server:
        reply = await client_of(provider, server.url).complete(HELLO)
    assert (reply.content, reply.retries) == ("hi", 2)
    assert len(server.requests) == 3
    assert len({request.raw for request in server.requests}) == 1


@both
async def test_retries_end_after_max_retries(provider: Provider) -> None:
    async with WireServer(
        [Status(503, provider.error(503, "UNAVAILABLE", "The model is overloaded."))]
    ) as server:
        with pytest.raises(
            ModelUnavailableError, match=r"503: The model is overloaded.*3 attempts"
        ) as caught:
            await client_of(provider, server.url, max_retries=2).complete(HELLO)
    assert caught.value.status == 503
    assert len(server.requests) == 3


@both
async def test_a_retry_waits_as_long_as_the_server_asks(provider: Provider) -> None:
    soon = Status(429, provider.error(429, "rate_limit_error", "slow"), {"Retry-After": "0"})
    late = Status(429, provider.error(429, "rate_limit_error", "slow"), {"Retry-After": "86400"})
    async with WireServer([soon, provider.reply]) as server:
        assert (await client_of(provider, server.url, retry_delay=1000.0).complete(HELLO)).retries == 1
    async with WireServer([late]) as server:
        with pytest.raises(ModelUnavailableError, match="slow"):
            await client_of(provider, server.url).complete(HELLO)
    assert len(server.requests) == 1


async def test_a_retry_waits_as_long_as_the_body_of_google_asks() -> None:
    def busy(delay: str) -> Status:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
        return Status(
            429,
            {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [info]}},
        )

    async with WireServer([busy("0.001s"), GEMINI.reply]) as server:
        assert (await client_of(GEMINI, server.url, retry_delay=1000.0).complete(HELLO)).retries == 1
    async with WireServer([busy("40000s")]) as server:
        with pytest.raises(ModelUnavailableError, match="quota"):
            await client_of(GEMINI, server.url).complete(HELLO)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("provider", "status", "code", "message", "kind"),
    [
        (ANTHROPIC, 401, "authentication_error", "invalid x-api-key", AuthenticationError),
        (ANTHROPIC, 403, "permission_error", "not allowed", AuthenticationError),
        (ANTHROPIC, 404, "not_found_error", "model: claude-x", ModelNotFoundError),
        (ANTHROPIC, 413, "request_too_large", "Request exceeds the maximum size", ContextLengthError),
        (
            ANTHROPIC,
            400,
            "invalid_request_error",
            "prompt is too long: 210000 tokens > 200000 maximum",
            ContextLengthError,
        ),
        (
            ANTHROPIC,
            400,
            "invalid_request_error",
            "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease input length",
            ContextLengthError,
        ),
        (ANTHROPIC, 400, "invalid_request_error", "temperature: range: 0..1", ModelError),
        (ANTHROPIC, 402, "billing_error", "pay first", ModelError),
        (
            GEMINI,
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            AuthenticationError,
        ),
        (GEMINI, 403, "PERMISSION_DENIED", "denied", AuthenticationError),
        (GEMINI, 404, "NOT_FOUND", "models/gemini-x is not found for API version v1", ModelNotFoundError),
        (
            GEMINI,
            400,
            "INVALID_ARGUMENT",
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            ContextLengthError,
        ),
        (GEMINI, 400, "INVALID_ARGUMENT", "Unsupported MIME type: image/tiff", ModelError),
    ],
)
async def test_permanent_errors_are_not_retried(
    provider: Provider, status: int, code: str, message: str, kind: type[ModelError]
) -> None:
    async with WireServer([Status(status, provider.error(status, code, message))]) as server:
        with pytest.raises(ModelError) as caught:
            await client_of(provider, server.url).complete(HELLO)
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert caught.value.status == status
    assert len(server.requests) == 1


@both
async def test_a_slow_model_times_out_and_is_retried(provider: Provider) -> None:
    async with WireServer([Hang()]) as server:
        with pytest.raises(ModelTimeoutError, match=r"within 0\.1 s.*2 attempts"):
            await client_of(provider, server.url, timeout=0.1, max_retries=1).complete(HELLO)
    assert len(server.requests) == 2


@both
async def test_a_missing_server_is_an_error_after_retries(provider: Provider) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(ModelUnavailableError, match=r"no connection.*2 attempts"):
        await client_of(provider, url, max_retries=1).complete(HELLO)


@both
@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "[]", "5", '{"content": 5, "candidates": 7}', '{"half']
)
async def test_a_body_that_is_not_a_reply_is_a_bad_reply(provider: Provider, body: Answer) -> None:
    async with WireServer([body]) as server:
        client = client_of(provider, server.url)
        if provider is GEMINI and body == "[]":
            assert (await client.complete(HELLO)).refusal  # the SDK reads it as an empty answer
            return
        with pytest.raises(BadReplyError, match="cannot be read"):
            await client.complete(HELLO)
    assert len(server.requests) == 1


@both
async def test_a_redirect_is_named_and_not_followed(provider: Provider) -> None:
    async with WireServer([Status(308, {}, {"Location": "https://there.example/v1"})]) as server:
        with pytest.raises(ModelNotFoundError, match=r"https://there\.example/v1"):
            await client_of(provider, server.url).complete(HELLO)
    assert len(server.requests) == 1


@both
async def test_a_value_that_cannot_be_sent_is_a_config_error(provider: Provider) -> None:
    async with WireServer([provider.reply]) as server:
        with pytest.raises(ConfigError):
            await client_of(provider, server.url).complete(HELLO, sampling={"temperature": object()})
        assert server.requests == []


@both
async def test_errors_logs_and_repr_hold_no_key(provider: Provider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="rlm")
    busy = Status(503, provider.error(503, "busy", f"not for {KEY}"))
    wrong = Status(401, provider.error(401, "authentication_error", f"who is {KEY}?"))
    async with WireServer([busy, wrong]) as server:
        client = client_of(provider, server.url)
        with pytest.raises(AuthenticationError, match="who is") as caught:
            await client.complete(HELLO)
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in f"{error!r} {error} {vars(error)}"
        error = error.__cause__ or error.__context__
    assert KEY not in f"{client!r} {caplog.text}"
    assert "attempt 2" in caplog.text


@both
async def test_many_calls_at_once_share_connections(provider: Provider) -> None:
    async with WireServer([provider.reply]) as server:
        client = client_of(provider, server.url)
        replies = await asyncio.gather(*(client.complete(HELLO) for _ in range(40)))
        assert [reply.content for reply in replies] == ["hi"] * 40
        assert open_pools() == 1


@both
def test_one_client_serves_many_loops_and_threads(provider: Provider) -> None:
    started: list[str] = []
    up, down = threading.Event(), threading.Event()

    def serve() -> None:
        async def run() -> None:
            async with WireServer([provider.reply]) as server:
                started.append(server.url)
                up.set()
                await asyncio.to_thread(down.wait)

        asyncio.run(run())

    background = threading.Thread(target=serve)
    background.start()
    up.wait()
    try:
        client = client_of(provider, started[0])
        contents: list[str] = []

        def talk() -> None:
            async def main() -> None:
                replies = await asyncio.gather(*(client.complete(HELLO) for _ in range(5)))
                contents.extend(reply.content for reply in replies)

            asyncio.run(main())

        talk()
        talk()
        threads = [threading.Thread(target=talk) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        down.set()
        background.join()
    assert contents == ["hi"] * 25
    assert open_pools() == 0


@both
async def test_cancelling_the_task_ends_the_request(provider: Provider) -> None:
    async with WireServer([Hang()]) as server:
        call = asyncio.create_task(client_of(provider, server.url).complete(HELLO))
        await server.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize(("backend", "module"), [("anthropic", "anthropic"), ("gemini", "google.genai")])
def test_a_missing_sdk_is_named(backend: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    if backend == "gemini":
        monkeypatch.delattr("google.genai", raising=False)
    with pytest.raises(ConfigError, match=rf"pip install 'rlms\[{backend}\]'"):
        make_client(backend, model_name="m", api_key=KEY)


@pytest.mark.parametrize(
    ("backend", "variable"), [("anthropic", "ANTHROPIC_API_KEY"), ("gemini", "GEMINI_API_KEY")]
)
async def test_the_key_comes_from_the_environment(
    backend: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = ANTHROPIC if backend == "anthropic" else GEMINI
    with pytest.raises(ConfigError, match=variable):
        make_client(backend, model_name="m")
    monkeypatch.setenv(variable, "from-the-environment")
    async with WireServer([provider.reply]) as server:
        client = make_client(backend, model_name="m", base_url=server.url)
        await client.complete(HELLO)
        assert "from-the-environment" in " ".join(server.requests[0].headers.values())
