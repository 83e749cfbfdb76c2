"""Which model server the quickstart takes, and what it says of one that cannot be used."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from oolong import quickstart
from oolong.quickstart import ServerError, model_server, named_server
from rlm.testing import ModelServer, serve


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serve(lambda request: "yes", models=["small"], api_key="sesame") as running:
        yield running


def test_without_a_name_it_is_the_reference_server_on_a_port_of_its_own() -> None:
    with model_server({}) as first, model_server({"RLM_BASE_URL": ""}) as second:
        assert first.base_url != second.base_url
        assert first.model == "oolong-reference"
        assert "NO LANGUAGE MODEL" in (first.note or "")
        assert named_server(first.base_url, None, None).note == first.note
    with pytest.raises(ServerError, match="no model server answers"):
        named_server(first.base_url, None, None)


def test_a_named_server_is_asked_for_its_model(server: ModelServer) -> None:
    environment = {"RLM_BASE_URL": f"{server.base_url}/", "RLM_API_KEY": "sesame", "RLM_MODEL": ""}
    with model_server(environment) as named:
        assert (named.base_url, named.model, named.api_key) == (server.base_url, "small", "sesame")


@pytest.mark.parametrize(
    ("key", "words"),
    [(None, "it wants a key: set RLM_API_KEY"), ("guess", "it refuses the key in RLM_API_KEY")],
)
def test_a_key_that_does_not_fit(server: ModelServer, key: str | None, words: str) -> None:
    with pytest.raises(ServerError, match=words) as failure:
        named_server(server.base_url, None, key)
    assert "guess" not in str(failure.value)


def test_a_model_that_it_does_not_have(server: ModelServer) -> None:
    with pytest.raises(ServerError, match="has no model 'large'; it has small"):
        named_server(server.base_url, "large", "sesame")


def test_one_of_several_models_has_to_be_named() -> None:
    with serve(lambda request: "yes", models=["small", "large"]) as server:
        with pytest.raises(ServerError, match=r"RLM_MODEL which model .*: small, large"):
            named_server(server.base_url, None, None)
        assert named_server(server.base_url, "large", None).model == "large"


def test_a_url_without_a_model_server(server: ModelServer) -> None:
    with pytest.raises(ServerError, match="usually ends in /v1"):
        named_server(server.url, None, "sesame")
    with pytest.raises(ServerError, match="no list of models"):
        named_server(server.url + "/health?", None, "sesame")
    with pytest.raises(ServerError, match="RLM_BASE_URL=nonsense is no URL"):
        named_server("nonsense", None, None)


def test_a_server_that_is_not_there_ends_the_quickstart_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RLM_BASE_URL", f"http://127.0.0.1:{port}/v1")
    assert quickstart.main([]) == 2
    assert f"no model server answers at RLM_BASE_URL=http://127.0.0.1:{port}/v1" in capsys.readouterr().err
