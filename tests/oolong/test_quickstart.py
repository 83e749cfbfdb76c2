"""The model server of the quickstart, and the errors for a server that cannot be used."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from oolong.quickstart import OOLONG, main
from rlm.testing import ModelServer, serve
from rlm_train.quickstart import ServerError, named_server


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serve(lambda request: "yes", models=["small"], api_key="sesame") as running:
        yield running


def test_without_a_url_each_quickstart_starts_a_reference_server_on_a_free_port() -> None:
    with OOLONG.server({}) as first, OOLONG.server({"RLM_BASE_URL": ""}) as second:
        assert first.base_url != second.base_url
        assert first.model == "oolong-reference"
        assert "NO LANGUAGE MODEL" in (first.note or "")
        assert named_server(first.base_url, None, None).note == first.note
    with pytest.raises(ServerError, match="no model server answers"):
        named_server(first.base_url, None, None)


def test_a_named_server_gives_its_only_model(server: ModelServer) -> None:
    environment = {"RLM_BASE_URL": f"{server.base_url}/", "RLM_API_KEY": "sesame", "RLM_MODEL": ""}
    with OOLONG.server(environment) as named:
        assert (named.base_url, named.model, named.api_key) == (server.base_url, "small", "sesame")


@pytest.mark.parametrize(
    ("key", "words"),
    [(None, "it needs a key: set RLM_API_KEY"), ("guess", "it refuses the key in RLM_API_KEY")],
)
def test_a_missing_or_refused_key_is_an_error_without_the_key(
    server: ModelServer, key: str | None, words: str
) -> None:
    with pytest.raises(ServerError, match=words) as failure:
        named_server(server.base_url, None, key)
    assert "guess" not in str(failure.value)


def test_a_model_that_the_server_lacks_is_an_error_that_lists_its_models(server: ModelServer) -> None:
    with pytest.raises(ServerError, match="has no model 'large'; it has small"):
        named_server(server.base_url, "large", "sesame")


def test_a_server_with_several_models_needs_the_name_of_one() -> None:
    with serve(lambda request: "yes", models=["small", "large"]) as server:
        with pytest.raises(ServerError, match=r"with RLM_MODEL: small, large"):
            named_server(server.base_url, None, None)
        assert named_server(server.base_url, "large", None).model == "large"


def test_a_url_that_is_not_of_a_model_server_is_an_error(server: ModelServer) -> None:
    with pytest.raises(ServerError, match="usually ends in /v1"):
        named_server(server.url, None, "sesame")
    with pytest.raises(ServerError, match="not a list of models"):
        named_server(server.url + "/health?", None, "sesame")
    with pytest.raises(ServerError, match="RLM_BASE_URL=nonsense is not a URL"):
        named_server("nonsense", None, None)


def test_the_quickstart_ends_with_status_2_if_no_server_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("RLM_BASE_URL", f"http://127.0.0.1:{port}/v1")
    assert main([]) == 2
    assert f"no model server answers at RLM_BASE_URL=http://127.0.0.1:{port}/v1" in capsys.readouterr().err
