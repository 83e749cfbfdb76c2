"""The OpenAI-compatible client against real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from rlm.clients.base import ModelReply
from rlm.clients.openai import OpenAIClient
from rlm.errors import (
    AuthenticationError,
    BadReplyError,
    ConfigError,
    ContextLengthError,
    ModelError,
    ModelNotFoundError,
    ModelTimeoutError,
    ModelUnavailableError,
    RolloutStoppedError,
)
from rlm.testing import Answer, ChatRequest, Fault, ModelServer, Reply, Script
from rlm.testing.server import Handler
from rlm.types import Message, Usage

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def client_of(server: ModelServer, **options: Any) -> OpenAIClient:
    return OpenAIClient(server.model, base_url=server.base_url, **{"retry_delay": 0.001, **options})


def literally(body: Mapping[str, Any] | str) -> Fault:
    return Fault(200, body=body)


@asynccontextmanager
async def raw_server(answer: bytes) -> AsyncIterator[str]:
    """A server that sends the same bytes for every request. Yields its URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


async def test_a_call_sends_the_chat_and_reads_the_reply() -> None:
    async with ModelServer(Script([Reply("hi", reasoning="hm", finish_reason="stop")])) as server:
        client = client_of(
            server, api_key="k", default_headers={"X-Team": "7"}, sampling_args={"temperature": 0.5}
        )
        reply = await client.complete(HELLO, sampling={"max_tokens": 50})
    assert reply == ModelReply(
        "hi", "scripted", usage=Usage(7, 1), finish_reason="stop", reasoning="hm", retries=0
    )
    [request] = server.requests
    assert request.messages == HELLO
    assert request.sampling == {"temperature": 0.5, "max_tokens": 50}
    assert request.headers["x-team"] == "7"
    assert "x-stainless-retry-count" not in request.headers


async def test_sampling_arguments_of_a_call_take_precedence_and_none_removes_one() -> None:
    async with ModelServer(Script(["a"]), models=["scripted", "other"]) as server:
        client = client_of(
            server, sampling_args={"temperature": 0.5, "top_p": 0.9, "extra_body": {"top_k": 4}}
        )
        reply = await client.complete(HELLO, sampling={"temperature": 0.1, "top_p": None}, model="other")
    assert reply.model == "other"
    assert server.requests[0].model == "other"
    assert server.requests[0].sampling == {"temperature": 0.1, "top_k": 4}


@pytest.mark.parametrize(
    "sampling",
    [{"stream": True}, {"messages": []}, {"n": 2}, {"extra_body": {"model": "x"}}, {"extra_body": 1}],
)
async def test_fields_that_are_not_sampling_arguments_are_refused(sampling: dict[str, Any]) -> None:
    async with ModelServer(Script(["a"])) as server:
        with pytest.raises(ConfigError):
            await client_of(server).complete(HELLO, sampling=sampling)
        assert server.requests == []


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
async def test_a_value_that_json_cannot_hold_is_a_config_error(value: object) -> None:
    with pytest.raises(ConfigError, match="JSON"):
        await OpenAIClient("m", base_url="http://127.0.0.1:1/v1").complete(HELLO, sampling={"seed": value})


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_temporary_faults_are_retried_as_the_same_call(status: int) -> None:
    async with ModelServer(Script([Fault(status), Fault(status), "at last"])) as server:
        reply = await client_of(server).complete(HELLO)
    assert (reply.content, reply.retries) == ("at last", 2)
    first, second, third = server.requests
    assert [r.headers.get("x-stainless-retry-count") for r in server.requests] == [None, "1", "2"]
    assert first.messages == second.messages == third.messages
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 1
    assert len({r.headers["content-length"] for r in server.requests}) == 1


async def test_every_call_has_its_own_idempotency_key() -> None:
    async with ModelServer(Script(["a"])) as server:
        client = client_of(server)
        await asyncio.gather(*(client.complete(HELLO) for _ in range(5)))
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 5


@pytest.mark.parametrize("drop", ["before", "during"])
async def test_a_dropped_connection_is_retried(drop: Any) -> None:
    async with ModelServer(Script([Fault(200, "long enough to be cut", drop=drop), "back"])) as server:
        reply = await client_of(server).complete(HELLO)
    assert (reply.content, reply.retries) == ("back", 1)


async def test_retries_end_after_max_retries() -> None:
    async with ModelServer(Script([Fault(503, "busy")])) as server:
        with pytest.raises(ModelUnavailableError, match=r"503: busy.*3 attempts") as caught:
            await client_of(server, max_retries=2).complete(HELLO)
    assert caught.value.status == 503
    assert len(server.requests) == 3


async def test_a_missing_server_is_an_error_after_retries() -> None:
    url = f"http://127.0.0.1:{closed_port()}/v1"
    with pytest.raises(ModelUnavailableError, match="no connection") as caught:
        await OpenAIClient("m", base_url=url, max_retries=2, retry_delay=0.001).complete(HELLO)
    assert url in str(caught.value)
    assert "3 attempts" in str(caught.value)
    assert caught.value.status is None


async def test_https_to_a_server_that_speaks_http_is_not_retried() -> None:
    async with ModelServer(Script(["a"])) as server:
        client = OpenAIClient("scripted", base_url=server.base_url.replace("http:", "https:"))
        with pytest.raises(ModelUnavailableError, match="no TLS connection") as caught:
            await client.complete(HELLO)
        assert "attempts" not in str(caught.value)
        assert server.connections == 1


async def test_a_server_that_comes_up_late_is_found() -> None:
    port = closed_port()
    client = OpenAIClient(
        "scripted", base_url=f"http://127.0.0.1:{port}/v1", max_retries=10_000, retry_delay=0.01
    )
    call = asyncio.create_task(client.complete(HELLO))
    await asyncio.sleep(0)
    async with ModelServer(Script(["here"]), port=port):
        assert (await call).content == "here"


async def test_a_retry_waits_as_long_as_the_server_asks() -> None:
    # Without the header the first retry would come after at least 15 s.
    soon: list[Answer] = [
        Fault(429, headers={"Retry-After-Ms": "1"}),
        Fault(503, headers={"Retry-After": "0"}),
        "ok",
    ]
    async with ModelServer(Script(soon)) as server:
        assert (await client_of(server, retry_delay=1000.0).complete(HELLO)).retries == 2


async def test_a_wait_beyond_the_retry_window_ends_the_call_at_once() -> None:
    async with ModelServer(
        Script([Fault(429, "slow down", headers={"Retry-After": "86400"}), "ok"])
    ) as server:
        with pytest.raises(
            ModelUnavailableError, match=r"slow down; the server asks to wait 86,400 s"
        ) as caught:
            await client_of(server).complete(HELLO)
    assert caught.value.status == 429
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429, body={"error": {"message": "pay first", "code": "insufficient_quota"}}),
        Fault(500, headers={"X-Should-Retry": "false"}),
    ],
)
async def test_permanent_faults_are_not_retried(fault: Fault) -> None:
    async with ModelServer(Script([fault, "ok"])) as server:
        with pytest.raises(ModelUnavailableError):
            await client_of(server).complete(HELLO)
    assert len(server.requests) == 1


async def test_a_slow_model_times_out_and_is_retried() -> None:
    async def never(request: ChatRequest) -> str:
        await asyncio.Event().wait()
        return ""

    async with ModelServer(never) as server:
        with pytest.raises(ModelTimeoutError, match=r"within 0\.05 s.*2 attempts"):
            await client_of(server, timeout=0.05, max_retries=1).complete(HELLO)
    assert len(server.requests) == 2


async def test_cancelling_the_task_ends_the_request_at_the_server() -> None:
    started, gone = asyncio.Event(), asyncio.Event()

    async def policy(request: ChatRequest) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        return ""

    async with ModelServer(policy) as server:
        call = asyncio.create_task(client_of(server).complete(HELLO))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await gone.wait()


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_an_authentication_error(status: int) -> None:
    async with ModelServer(Script([Fault(status, "bad key"), "ok"])) as server:
        with pytest.raises(AuthenticationError, match="bad key") as caught:
            await client_of(server).complete(HELLO)
    assert caught.value.status == status
    assert len(server.requests) == 1


async def test_an_unknown_model_error_lists_the_models() -> None:
    async with ModelServer(Script(["a"]), models=["qwen-small", "qwen-large"]) as server:
        with pytest.raises(ModelNotFoundError, match=r"no model 'qwen'.*it has qwen-small, qwen-large"):
            await client_of(server).complete(HELLO, model="qwen")


async def test_a_url_without_a_model_server_is_named() -> None:
    async with ModelServer(Script(["a"])) as server:
        client = OpenAIClient("scripted", base_url=server.url)
        with pytest.raises(ModelNotFoundError, match=r"/chat/completions .*usually ends in /v1"):
            await client.complete(HELLO)


async def test_a_redirect_is_named_and_not_followed() -> None:
    async with ModelServer(Script([Fault(308, headers={"Location": "https://there.example/v1"})])) as server:
        with pytest.raises(ModelNotFoundError, match=r"https://there\.example/v1"):
            await client_of(server).complete(HELLO)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 402, 422])
async def test_other_client_errors_are_final(status: int) -> None:
    async with ModelServer(Script([Fault(status, "no such argument"), "ok"])) as server:
        with pytest.raises(ModelError, match=f"{status}: no such argument") as caught:
            await client_of(server).complete(HELLO)
    assert type(caught.value) is ModelError
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "rollout stopped: max_turns", "type": "invalid_request_error"}}),
        (400, {"error": {"message": "rollout stopped: context_length", "type": "invalid_request_error"}}),
        (409, {"error": {"message": "rollout concluded", "type": "invalid_request_error"}}),
        (409, {"error": "rollout concluded"}),
    ],
)
async def test_the_end_of_a_training_rollout_is_final(status: int, body: dict[str, Any]) -> None:
    async with ModelServer(Script([Fault(status, body=body), "ok"])) as server:
        with pytest.raises(RolloutStoppedError, match=r"rollout (stopped|concluded)") as caught:
            await client_of(server).complete(HELLO)
    assert caught.value.status == status
    assert len(server.requests) == 1


async def test_an_error_that_quotes_the_prompt_does_not_end_the_rollout() -> None:
    async with ModelServer(Script([Fault(400, "cannot read 'rollout stopped'")])) as server:
        with pytest.raises(ModelError) as caught:
            await client_of(server).complete(HELLO)
    assert type(caught.value) is ModelError


async def test_a_prompt_over_the_window_is_a_context_length_error() -> None:
    async with ModelServer(Script(["a"]), max_model_len=100) as server:
        with pytest.raises(ContextLengthError, match="maximum context length is 100 tokens"):
            await client_of(server).complete([{"role": "user", "content": "x" * 500}])
        with pytest.raises(ContextLengthError, match="max_tokens"):
            await client_of(server).complete(HELLO, sampling={"max_tokens": 100})


@pytest.mark.parametrize(
    "body",
    [
        "<html><body>502 from somewhere</body></html>",
        "",
        '{"choices": [{"mess',
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"finish_reason": "stop"}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": {"message": {}}},
        "[1, 2]",
    ],
)
async def test_a_body_that_is_not_a_chat_completion_is_a_bad_reply(body: Mapping[str, Any] | str) -> None:
    async with ModelServer(Script([literally(body), "ok"])) as server:
        with pytest.raises(BadReplyError) as caught:
            await client_of(server).complete(HELLO)
    assert len(server.requests) == 1
    assert (body if isinstance(body, str) else json.dumps(body)) in str(caught.value)


async def test_an_answer_that_is_not_http_is_a_bad_reply() -> None:
    async with raw_server(b"SSH-2.0-OpenSSH_9.2\r\n\r\n") as url:
        with pytest.raises(BadReplyError, match="not HTTP"):
            await OpenAIClient("m", base_url=url, retry_delay=0.001).complete(HELLO)


async def test_a_body_that_ends_early_is_a_lost_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"
    async with raw_server(answer) as url:
        with pytest.raises(ModelUnavailableError, match=r"lost.*2 attempts"):
            await OpenAIClient("m", base_url=url, max_retries=1, retry_delay=0.001).complete(HELLO)


async def test_an_error_inside_a_200_has_its_own_status() -> None:
    busy = literally({"error": {"code": 429, "message": "upstream busy"}})
    async with ModelServer(Script([busy, "ok"])) as server:
        assert (await client_of(server).complete(HELLO)).retries == 1


async def test_surrogates_do_not_break_the_request() -> None:
    async with ModelServer(Script(["a"])) as server:
        await client_of(server).complete([{"role": "user", "content": "a\ud800b \ud83d\ude00 \udfff\u00e9"}])
    assert server.requests[0].text == "a\ufffdb \U0001f600 \ufffd\u00e9"


async def test_large_prompts_are_sent_whole() -> None:
    text = "0123456789abcdef" * 2_000_000
    async with ModelServer(lambda request: str(len(request.text)), max_model_len=None) as server:
        assert (await client_of(server).complete([{"role": "user", "content": text}])).content == "32000000"


async def test_hundreds_of_concurrent_calls_are_answered() -> None:
    everybody = asyncio.Event()

    async def policy(request: ChatRequest) -> str:
        if server.peak == 400:
            everybody.set()
        await everybody.wait()
        return request.text

    async with ModelServer(policy) as server:
        client = client_of(server)
        replies = await asyncio.gather(
            *(client.complete([{"role": "user", "content": str(i)}]) for i in range(400))
        )
    assert [reply.content for reply in replies] == [str(i) for i in range(400)]


async def test_thinking_is_sent_back_only_with_echo_reasoning() -> None:
    async with ModelServer(Script([Reply("hi", reasoning="hm")])) as server:
        plain = await client_of(server).complete(HELLO)
        echoing = await client_of(server, echo_reasoning=True).complete(HELLO)
    assert plain.message == {"role": "assistant", "content": "hi"}
    assert echoing.message == {"role": "assistant", "content": "hi", "reasoning_content": "hm"}


async def test_errors_logs_and_repr_hold_no_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def leaky(request: ChatRequest) -> Fault:
        return Fault(401 if request.attempt else 503, f"who is sk-very-secret? {request.headers['x-token']}")

    async with ModelServer(leaky) as server:
        client = client_of(server, api_key="sk-very-secret", default_headers={"X-Token": "hush-hush-hush"})
        with pytest.raises(AuthenticationError, match="who is") as caught:
            await client.complete(HELLO)
    chain = f"{caught.value} {caught.value.__cause__!r} {caught.value.__context__!r}"
    for text in (chain, repr(client), str(vars(caught.value)), caplog.text):
        assert "sk-very-secret" not in text
        assert "hush-hush-hush" not in text
    assert "attempt 2" in caplog.text


async def test_objects_behind_an_error_hold_no_key() -> None:
    async with raw_server(b"no HTTP\r\n\r\n") as url:
        client = OpenAIClient("m", base_url=url, api_key="sk-very-secret", max_retries=0)
        with pytest.raises(BadReplyError) as caught:
            await client.complete(HELLO)
    error: BaseException | None = caught.value
    while error is not None:
        assert "sk-very-secret" not in f"{error!r} {vars(error)}"
        error = error.__cause__ or error.__context__


async def test_the_key_is_sent_as_bearer_token() -> None:
    async with ModelServer(Script(["a"]), api_key="right") as server:
        assert (await client_of(server, api_key=" right\n").complete(HELLO)).content == "a"
        for wrong in ("left", None):
            with pytest.raises(AuthenticationError):
                await client_of(server, api_key=wrong).complete(HELLO)


class ListServer(ModelServer):
    """A server with a given model list. It counts the requests for the list."""

    def __init__(self, listing: Any, status: int = 200) -> None:
        super().__init__(Script(["a"]))
        self._listing = listing
        self._status = status
        self.asked = 0

    def routes(self) -> list[tuple[str, str, Handler]]:
        return [*super().routes()[:1], ("GET", "/v1/models", self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return web.json_response(self._listing, status=self._status)


async def test_concurrent_calls_ask_for_the_window_once() -> None:
    async with ListServer({"data": [{"id": "scripted", "max_model_len": 4096}]}) as server:
        clients = [client_of(server) for _ in range(100)]
        first = asyncio.create_task(clients[0].context_length())
        await asyncio.sleep(0)
        first.cancel()  # the call that made the shared request
        assert await asyncio.gather(*(client.context_length() for client in clients)) == [4096] * 100
        assert server.asked == 1


@pytest.mark.parametrize(
    ("listing", "window"),
    [
        ({"data": [{"id": "a", "context_length": 9}, {"id": "scripted", "context_length": 7}]}, 7),
        ({"data": [{"id": "another name", "max_model_len": 5}]}, 5),
        (
            {
                "data": [
                    {"id": "base", "max_model_len": 3},
                    {"id": "scripted", "max_model_len": None, "parent": "base"},
                ]
            },
            3,
        ),
        ({"data": [{"id": "a", "max_model_len": 5}, {"id": "b", "max_model_len": 5}]}, None),
        ({"data": [{"id": "scripted", "parent": "scripted"}]}, None),
        ({"data": [{"id": "scripted", "max_model_len": "many"}]}, None),
        ({"data": [None, 5]}, None),
        ({"data": None}, None),
        ([], None),
    ],
)
async def test_the_window_is_read_in_every_form(listing: Any, window: int | None) -> None:
    async with ListServer(listing) as server:
        assert await client_of(server).context_length() == window


async def test_the_window_is_none_if_the_server_does_not_list_it() -> None:
    async with ListServer({"data": []}, status=500) as server:
        assert await client_of(server).context_length() is None
        assert await client_of(server).context_length() is None
        assert server.asked == 1
    assert (await OpenAIClient("m", base_url=f"http://127.0.0.1:{closed_port()}").context_length()) is None


async def test_the_proxy_of_the_environment_is_used_except_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = b'{"choices": [{"message": {"content": "through the proxy"}}]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    async with raw_server(answer) as url, ModelServer(Script(["direct"])) as server:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        far = OpenAIClient("m", base_url="http://model.example/v1", max_retries=0)
        assert (await far.complete(HELLO)).content == "through the proxy"
        assert (await client_of(server).complete(HELLO)).content == "direct"
