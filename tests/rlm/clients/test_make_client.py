"""`make_client` and `register_backend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlm.clients import Client, ModelReply, backends, make_client, register_backend
from rlm.clients.openai import OpenAIClient
from rlm.errors import ConfigError
from rlm.testing import Script, ScriptedClient
from rlm.types import Message, SamplingArgs


def url_of(client: object) -> str:
    assert isinstance(client, OpenAIClient)
    return client.base_url


def test_openai_needs_a_key_and_takes_it_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        make_client("openai", model_name="gpt")
    assert url_of(make_client("openai", model_name="gpt", api_key="k")) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert make_client("openai", model_name="gpt").model == "gpt"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    assert url_of(make_client("openai", model_name="gpt")) == "http://127.0.0.1:9/v1"
    assert url_of(make_client("openai", model_name="gpt", base_url="http://h/v1")) == "http://h/v1"


def test_vllm_needs_a_url_and_no_key() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        make_client("vllm", model_name="qwen")
    assert url_of(make_client("vllm", model_name="qwen", base_url="http://h:8000/v1")) == "http://h:8000/v1"


@pytest.mark.parametrize(
    ("backend", "options", "hint"),
    [
        ("vlm", {}, "did you mean 'vllm'"),
        ("zzz", {}, "there are openai, vllm"),
        ("openrouter", {"model_name": "m", "app_titel": "x"}, "did you mean 'app_title'"),
        ("openrouter", {"model_name": "m", "max_retrys": 1}, "did you mean 'max_retries'"),
        ("portkey", {"model_name": "m", "virtualkey": "x"}, "did you mean 'virtual_key'"),
        ("anthropic", {"model_name": "m", "prompt_cache": 1}, "did you mean 'prompt_caching'"),
        ("anthropic", {"model_name": "m", "thinking": {}}, r"sampling_args=\{'thinking': \.\.\.\}"),
        (
            "gemini",
            {"model_name": "m", "max_output_tokens": 5},
            r"sampling_args=\{'max_output_tokens': \.\.\.\}",
        ),
        ("gemini", {}, "needs model_name"),
        ("vllm", {"model_name": "m", "max_tokens": 5}, r"sampling_args=\{'max_tokens': \.\.\.\}"),
        (
            "vllm",
            {"model_name": "m", "base_url": "http://h", "max_tokens_field": "tokens"},
            "max_tokens_field",
        ),
        ("vllm", {"model": "m"}, "did you mean 'model_name'"),
        ("vllm", {"model_name": "m", "base_ur": "x"}, "did you mean 'base_url'"),
        ("vllm", {"model_name": "m", "temperature": 1.0}, r"sampling_args=\{'temperature': \.\.\.\}"),
        ("vllm", {}, "needs model_name"),
        ("vllm", {"model_name": 5, "base_url": "http://h"}, "model_name"),
        ("vllm", {"model_name": "m", "base_url": "127.0.0.1:8000"}, "http://"),
        ("vllm", {"model_name": "m", "base_url": "http://h:99999/v1"}, "base_url"),
        ("vllm", {"model_name": "m", "base_url": "ftp://h/v1"}, "http://"),
        ("vllm", {"model_name": "m", "base_url": "http://h/v1?key=1"}, "query"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "timeout": 0}, "timeout"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "timeout": "9"}, "timeout"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "max_retries": -1}, "max_retries"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "retry_delay": float("nan")}, "retry_delay"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "sampling_args": [1]}, "sampling_args"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "sampling_args": {"stream": True}}, "stream"),
        ("vllm", {"model_name": "m", "base_url": "http://h", "default_headers": {"a": 5}}, "default_headers"),
        (
            "vllm",
            {"model_name": "m", "base_url": "http://h", "default_headers": {"a b": "5"}},
            "default_headers",
        ),
    ],
)
def test_a_wrong_argument_is_named(backend: str, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        make_client(backend, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "http://user:hunter2@h/v1"},
        {"base_url": "http://h", "api_key": "hunter2\nX-Evil: 1"},
        {"base_url": "http://h", "default_headers": {"X": "hunter2\r\n"}},
    ],
)
def test_errors_show_no_secret(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_client("vllm", model_name="m", **options)
    assert "hunter2" not in f"{caught.value} {caught.value.__context__}"


def test_every_built_in_backend_is_listed() -> None:
    names = ["openai", "vllm", "openrouter", "vercel", "portkey", "azure_openai", "anthropic", "gemini"]
    assert backends()[: len(names)] == names


@pytest.mark.parametrize("backend", backends())
def test_a_client_has_provider_sampling_arguments_and_reports_cost(backend: str) -> None:
    place = {"vllm": "base_url", "azure_openai": "azure_endpoint"}.get(backend)
    options: dict[str, Any] = {} if place is None else {place: "http://h"}
    client: Any = make_client(
        backend, model_name="m", api_key="k", sampling_args={"max_tokens": 7}, **options
    )
    assert (client.provider, client.sampling_args["max_tokens"]) == (backend, 7)
    assert client.reports_cost is (backend == "openrouter")


async def test_a_registered_backend_makes_clients() -> None:
    def globex(model_name: str, *, mood: str = "good", **rest: Any) -> Client:
        return ScriptedClient(Script([f"in a {mood} mood"]), model=model_name)

    def strict(model_name: str = "default", *, mood: str = "good") -> Client:
        return globex(model_name, mood=mood)

    register_backend("globex-open", globex)
    register_backend("globex", strict)
    assert {"globex", "globex-open"} < set(backends())
    client = make_client("globex", mood="bad")
    assert client.model == "default"
    assert (await client.complete([{"role": "user", "content": "?"}])).content == "in a bad mood"
    assert make_client("globex-open", model_name="m", anything="goes").model == "m"
    with pytest.raises(ConfigError, match="did you mean 'mood'"):
        make_client("globex", moood="bad")
    with pytest.raises(ConfigError, match="needs model_name"):
        make_client("globex-open")
    with pytest.raises(ConfigError, match="did you mean 'globex-open'"):
        make_client("globex-opn")


def test_a_taken_backend_name_needs_replace() -> None:
    def factory(model_name: str) -> Client:
        return ScriptedClient(Script(["a"]), model=model_name)

    register_backend("taken", factory)
    for name in ("taken", "openai"):
        with pytest.raises(ConfigError, match="replace=True"):
            register_backend(name, factory)
    register_backend("taken", factory, replace=True)
    with pytest.raises(ConfigError, match="must be a function"):
        register_backend("new", "no function")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name of a backend"):
        register_backend("", factory)


def test_a_backend_that_makes_no_client_is_refused() -> None:
    register_backend("typo", lambda model_name: object())  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="what backend 'typo' makes must be a client"):
        make_client("typo", model_name="m")


async def test_a_client_needs_a_model_and_complete_only() -> None:
    class Least(Client):
        model = "m"

        async def complete(
            self,
            messages: Sequence[Message],
            *,
            sampling: SamplingArgs | None = None,
            model: str | None = None,
        ) -> ModelReply:
            return ModelReply("", "m")

    client = Least()
    assert await client.context_length() is None
    assert (client.provider, dict(client.sampling_args), client.reports_cost) == ("", {}, False)
