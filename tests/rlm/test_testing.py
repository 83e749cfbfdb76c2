"""Scripted models, in process and over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm import RLM
from rlm.clients.base import Client, ModelReply
from rlm.clients.openai import OpenAIClient
from rlm.errors import (
    ContextLengthError,
    ModelError,
    ModelUnavailableError,
    RolloutStoppedError,
)
from rlm.testing import (
    FINISH,
    Answer,
    ChatRequest,
    Fault,
    ModelServer,
    Reply,
    Script,
    ScriptedClient,
    ScriptExhaustedError,
    count_tokens,
    finish,
    repl_block,
    serve,
)
from rlm.types import Message, SamplingArgs, Usage

ROOT = Path(__file__).parents[2]
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def http_client(server: ModelServer) -> OpenAIClient:
    return OpenAIClient(server.model, base_url=server.base_url, max_retries=0)


def request_of(
    server: ModelServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any]:
    """One plain HTTP request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# Script


def test_a_script_plays_each_conversation_from_the_start() -> None:
    script = Script(["one", "two"])

    def at(turn: int) -> Answer:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}] * turn
        return script(ChatRequest([*messages, {"role": "user", "content": "the question"}], "m"))

    assert [at(0), at(1), at(0), at(1)] == ["one", "two", "one", "two"]
    with pytest.raises(ScriptExhaustedError, match=r"has 2 turns .* turn 3, after: 'the question'"):
        at(2)


def test_faults_of_a_script_happen_to_the_first_attempts() -> None:
    first, second = Fault(429), Fault(500)
    script = Script([first, second, "one", Fault(drop="before")])

    def attempt(number: int, turn: int = 0) -> Answer:
        messages: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] * turn
        return script(ChatRequest(messages, "m", headers={"x-stainless-retry-count": str(number)}))

    assert [attempt(0), attempt(1), attempt(2), attempt(3)] == [first, second, "one", "one"]
    assert attempt(5, turn=1) == Fault(drop="before")


async def test_a_script_answers_a_run_and_its_subcalls() -> None:
    turns = [repl_block("print('seen')", "I look."), finish("parts", "parts = llm_query_batched(context)")]
    client = ScriptedClient(Script(turns, subcalls=lambda request: request.text.upper()))
    async with RLM(client=client) as rlm:
        completion = await rlm.acompletion(["a", "b"], "What?")
    assert completion.response == "['A', 'B']"
    assert completion.iterations[0].observation.startswith("Output:\nseen\n")
    assert [request.is_subcall for request in client.requests] == [False, False, True, True]
    async with RLM(client=ScriptedClient(Script([FINISH]))) as rlm:
        assert (await rlm.acompletion("text", "What?")).response == "done"


@pytest.mark.parametrize("value", ["", "x", "-1", "²"])
def test_an_invalid_retry_count_means_the_first_attempt(value: str) -> None:
    assert ChatRequest([], "m", headers={"x-stainless-retry-count": value}).attempt == 0


# Both ways


answers = st.one_of(
    st.text(max_size=40),
    st.builds(
        Reply,
        st.none() | st.text(max_size=40),
        reasoning=st.none() | st.text(min_size=1, max_size=40),
        finish_reason=st.sampled_from(["stop", "content_filter"]),
        refusal=st.none() | st.just("no"),
        usage=st.none() | st.just(Usage(5, 6, 0.5, 3)),
    ),
    st.builds(Fault, st.sampled_from([400, 401, 404, 408, 409, 422, 429, 500, 503]), st.text(max_size=20)),
    st.just(Fault(409, "rollout concluded")),
    st.just(Fault(200, body="<html>")),
    st.just(
        Fault(
            200,
            body={
                "choices": [{"message": {"content": "literal"}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            },
        )
    ),
    st.just(Fault(drop="before")),
)


async def outcome(
    client: Client, messages: list[Message], sampling: SamplingArgs
) -> ModelReply | tuple[type, Any]:
    try:
        return await client.complete(messages, sampling=sampling)
    except ModelError as exc:
        return type(exc), exc.status


@settings(deadline=None, max_examples=60)
@given(answers, st.text(max_size=400), st.none() | st.integers(1, 12))
def test_a_policy_gives_the_same_replies_in_process_and_over_http(
    answer: Answer, prompt: str, max_tokens: int | None
) -> None:
    def policy(request: ChatRequest) -> Answer:
        return answer

    async def compare() -> None:
        messages: list[Message] = [{"role": "user", "content": prompt}]
        sampling = {"max_tokens": max_tokens}
        async with ModelServer(policy, max_model_len=90) as server:
            client = ScriptedClient(policy, max_model_len=90)
            for _ in range(2):  # the second call hits the prefix cache
                assert await outcome(client, messages, sampling) == await outcome(
                    http_client(server), messages, sampling
                )

    asyncio.run(compare())


async def test_policies_may_be_coroutines() -> None:
    async def policy(request: ChatRequest) -> str:
        await asyncio.sleep(0)
        return request.text[::-1]

    assert (await ScriptedClient(policy).complete(HELLO)).content == "olleh"


async def test_a_failing_policy_fails_its_call_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "rlm.testing")

    def policy(request: ChatRequest) -> Answer:
        if request.text == "bad":
            raise LookupError("no such line")
        return 5 if request.text == "odd" else "ok"  # type: ignore[return-value]

    async with ModelServer(policy) as server:
        retrying = OpenAIClient("scripted", base_url=server.base_url)
        for client in (ScriptedClient(policy), retrying):
            with pytest.raises(ModelUnavailableError, match="LookupError: no such line"):
                await client.complete([{"role": "user", "content": "bad"}])
            with pytest.raises(ModelUnavailableError, match="returned a int"):
                await client.complete([{"role": "user", "content": "odd"}])
            assert (await client.complete(HELLO)).content == "ok"
        assert len(server.requests) == 3  # the client knows that a retry would not help


async def test_faults_in_process_are_the_errors_of_the_real_client() -> None:
    with pytest.raises(RolloutStoppedError):
        await ScriptedClient(Script([Fault(400, "rollout stopped: max_turns")])).complete(HELLO)
    with pytest.raises(ModelUnavailableError):
        await ScriptedClient(Script([Fault(drop="during")])).complete(HELLO)


async def test_a_scripted_client_records_its_requests() -> None:
    client = ScriptedClient(Script(["a"]), model="m", max_model_len=64, sampling_args={"seed": 1})
    messages: list[Message] = [{"role": "user", "content": "hello"}]
    reply = await client.complete(messages, sampling={"temperature": 0.0}, model="n")
    messages[0]["content"] = "changed later"
    assert (client.model, reply.model, await client.context_length()) == ("m", "n", 64)
    assert client.requests == [
        ChatRequest([{"role": "user", "content": "hello"}], "n", {"seed": 1, "temperature": 0.0})
    ]


# Tokens


def test_four_characters_are_a_token() -> None:
    assert [count_tokens("x" * n) for n in (0, 1, 4, 5, 400)] == [0, 1, 1, 2, 100]


async def test_a_growing_chat_hits_the_prefix_cache() -> None:
    client = ScriptedClient(lambda request: "word " * 200)
    messages: list[Message] = [
        {"role": "system", "content": "rule " * 100},
        {"role": "user", "content": "go"},
    ]
    first = await client.complete(messages)
    assert first.usage.cached_tokens == 0
    longer: list[Message] = [*messages, first.message, {"role": "user", "content": "on"}]
    second = await client.complete(longer)
    # All whole blocks of 64 tokens of the first prompt and its reply, except the block that the markup shifts.
    seen = first.usage.total_tokens
    assert seen - 2 * 64 < second.usage.cached_tokens <= seen
    assert second.usage.cached_tokens % 64 == 0
    other: list[Message] = [{"role": "system", "content": "Other" + "rule " * 100}, *messages[1:]]
    assert (await client.complete(other)).usage.cached_tokens == 0
    assert (await client.complete(longer)).usage.cached_tokens < second.usage.input_tokens


async def test_max_tokens_cuts_the_reply() -> None:
    client = ScriptedClient(Script([Reply("c" * 100, reasoning="r" * 8)]))

    async def cut(name: str, limit: int) -> tuple[str, str | None, str | None, int]:
        reply = await client.complete(HELLO, sampling={name: limit})
        return reply.content, reply.reasoning, reply.finish_reason, reply.usage.output_tokens

    assert await cut("max_tokens", 3) == ("cccc", "r" * 8, "length", 3)
    assert await cut("max_completion_tokens", 1) == ("", "r" * 4, "length", 1)
    assert await cut("max_tokens", 27) == ("c" * 100, "r" * 8, "stop", 27)


async def test_the_window_cuts_the_reply_and_refuses_the_prompt() -> None:
    client = ScriptedClient(lambda request: "c" * 1000, max_model_len=20)
    reply = await client.complete(HELLO)
    assert (reply.finish_reason, reply.usage.total_tokens) == ("length", 20)
    with pytest.raises(ContextLengthError, match="20 tokens"):
        await client.complete([{"role": "user", "content": "x" * 80}])


# The server


@contextmanager
def strict_server() -> Iterator[ModelServer]:
    with serve(Script(["a"]), models=["root", "sub"], api_key="k", max_model_len=4096) as server:
        yield server


def test_the_server_says_that_it_is_not_a_language_model() -> None:
    with strict_server() as server:
        status, listing = request_of(server, "GET", "/v1/models", Authorization="Bearer k")
        assert status == 200
        assert [(m["id"], m["max_model_len"]) for m in listing["data"]] == [("root", 4096), ("sub", 4096)]
        assert all("no language model" in m["owned_by"] for m in listing["data"])
        status, health = request_of(server, "GET", "/health")
        assert status == 200
        assert "no language model" in health["server"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[]", 400, "object"),
        (b'{"model": "root"}', 400, "messages"),
        (b'{"model": "root", "messages": ["hello"]}', 400, "messages"),
        (b'{"messages": [{"role": "user"}]}', 400, "model"),
        (b'{"model": "root", "messages": [{}], "stream": true}', 400, "stream"),
        (b'{"model": "root", "messages": [{}], "n": 2}', 400, "n must be 1"),
        (b'{"model": "root", "messages": [{}], "max_tokens": "many"}', 400, "max_tokens"),
        (b'{"model": "leaf", "messages": [{}]}', 404, "The model `leaf` does not exist."),
    ],
)
def test_bad_requests_are_refused_as_vllm_does(body: bytes, status: int, text: str) -> None:
    with strict_server() as server:
        answer = request_of(server, "POST", "/v1/chat/completions", body, Authorization="Bearer k")
    assert answer[0] == status
    assert text in answer[1]["error"]["message"]
    assert answer[1]["error"]["code"] == status


def test_a_wrong_key_is_refused() -> None:
    with strict_server() as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "k"}):
            for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models")):
                assert request_of(server, method, path, b"{}", **headers) == (401, {"error": "Unauthorized"})
        assert server.requests == []


def test_recorded_requests_hold_no_key() -> None:
    with strict_server() as server:
        body = json.dumps({"model": "root", "messages": HELLO}).encode()
        request_of(server, "POST", "/v1/chat/completions", body, Authorization="Bearer k", **{"X-Run": "3"})
    [request] = server.requests
    assert request.headers["x-run"] == "3"
    assert "authorization" not in request.headers


def test_the_same_requests_get_the_same_bytes() -> None:
    def talk() -> list[tuple[int, Any]]:
        with strict_server() as server:
            body = json.dumps({"model": "sub", "messages": HELLO}).encode()
            return [
                request_of(server, "POST", "/v1/chat/completions", body, Authorization="Bearer k")
                for _ in range(3)
            ]

    assert talk() == talk()


async def test_concurrent_requests_wait_for_the_latency_together() -> None:
    async with ModelServer(Script(["a"]), latency=0.05) as server:
        client = http_client(server)
        await asyncio.gather(*(client.complete(HELLO) for _ in range(20)))
        assert server.peak > 1
    with pytest.raises(ValueError, match="latency"):
        ModelServer(Script(["a"]), latency=-1.0)


async def test_stopping_the_server_drops_requests_in_flight() -> None:
    started = asyncio.Event()

    async def never(request: ChatRequest) -> str:
        started.set()
        await asyncio.Event().wait()
        return ""

    async with ModelServer(never) as server:
        call = asyncio.create_task(http_client(server).complete(HELLO))
        await started.wait()
    with pytest.raises(ModelUnavailableError):
        await call


def test_a_taken_port_is_an_error_at_once() -> None:
    with (
        strict_server() as server,
        pytest.raises(OSError, match="in use"),
        serve(Script(["b"]), port=server.port),
    ):
        pass


def test_a_server_that_never_ran_has_no_port() -> None:
    with pytest.raises(RuntimeError, match="has no port yet"):
        _ = ModelServer(Script(["a"])).base_url


def test_openais_sdk_can_talk_to_the_server() -> None:
    openai = pytest.importorskip("openai")
    with strict_server() as server, openai.OpenAI(api_key="k", base_url=server.base_url) as client:
        reply = client.chat.completions.create(model="root", messages=HELLO)
        assert reply.choices[0].message.content == "a"
        assert reply.usage.prompt_tokens == 7
        assert [model.id for model in client.models.list()] == ["root", "sub"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="leaf", messages=HELLO)


# The command


@contextmanager
def command(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "echoing.py").write_text("def policy(request):\n    return request.text.upper()\n")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "rlm.testing", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "THE_KEY": "k"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_command_serves_until_a_signal_comes(tmp_path: Path, number: signal.Signals) -> None:
    options = ("--model", "big", "--model", "small", "--max-model-len", "512", "--api-key-env", "THE_KEY")
    with command(tmp_path, "echoing:policy", *options) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(
            "scripted policy echoing:policy (no language model) serves big, small at http://127.0.0.1:"
        )
        client = OpenAIClient("small", base_url=line.split()[-1], api_key="k")

        async def talk() -> tuple[str, int | None]:
            return (await client.complete(HELLO)).content, await client.context_length()

        assert asyncio.run(talk()) == ("HELLO", 512)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["echoing"], "module:name"),
        (["echoing:missing"], "no policy 'echoing:missing'"),
        (["nowhere:policy"], "No module named 'nowhere'"),
        (["echoing:__name__"], "a policy is a function"),
        (["echoing:policy", "--api-key-env", "NO_SUCH"], "NO_SUCH is not set"),
        (["echoing:policy", "--max-model-len", "0"], "max_model_len"),
    ],
)
def test_a_wrong_argument_of_the_server_command_is_named(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    with command(tmp_path, *arguments) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert text in err
    assert "Traceback" not in err


def test_the_server_command_reports_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with command(tmp_path, "echoing:policy", "--port", str(port)) as process:
            _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in err
