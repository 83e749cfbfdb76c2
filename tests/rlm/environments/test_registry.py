"""Environments by name."""

from __future__ import annotations

from typing import Any

import pytest

from rlm import RLM
from rlm.environments import make_environment, names, register_environment
from rlm.environments.local import LocalEnvironment
from rlm.errors import ConfigError
from rlm.repl.interface import REPL, QueryHandler, SessionSpec
from rlm.repl.session import Session
from rlm.testing import ScriptedClient, finish


def test_local_is_made() -> None:
    environment = make_environment("local", isolation="process")
    assert isinstance(environment, LocalEnvironment)
    assert environment.isolation == "process"


@pytest.mark.parametrize("name", ["ipython", "docker", "modal", "prime", "daytona", "e2b"])
def test_places_that_are_not_built_yet_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not built yet"):
        make_environment(name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("locl", {}, "no environment 'locl'; did you mean 'local'\\?"),
        ("qqq", {}, "no environment 'qqq'; there are local"),
        ("local", {"isolaton": "process"}, "takes no 'isolaton'; did you mean 'isolation'\\?"),
        ("local", {"isolation": "jail"}, "no isolation 'jail'"),
    ],
)
def test_an_unknown_place_or_setting_names_the_nearest(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment(name, **settings)


async def test_a_registered_place_is_found_by_its_name() -> None:
    opened: list[SessionSpec] = []

    class Elsewhere(LocalEnvironment):
        def __init__(self, *, where: str) -> None:
            super().__init__(isolation="process")
            self.where = where

        async def open(self, spec: SessionSpec, on_query: QueryHandler) -> Session:
            opened.append(spec)
            return await super().open(spec, on_query)

    register_environment("elsewhere", Elsewhere)
    assert "elsewhere" in names()
    client = ScriptedClient(lambda _: finish("context"))
    async with RLM(client=client, environment="elsewhere", environment_kwargs={"where": "there"}) as rlm:
        assert (await rlm.acompletion("hello", "What?")).response == "hello"
    assert len(opened) == 1
    with pytest.raises(ConfigError, match="did you mean 'where'"):
        make_environment("elsewhere", were="there")
    with pytest.raises(ConfigError, match="already"):
        register_environment("elsewhere", Elsewhere)
    register_environment("elsewhere", Elsewhere, replace=True)
    with pytest.raises(ConfigError, match="a str"):
        register_environment("", Elsewhere)
    with pytest.raises(ConfigError, match="function"):
        register_environment("nowhere", "there")  # type: ignore[arg-type]


def test_a_plain_object_with_open_can_be_an_environment() -> None:
    class Plain:
        async def open(self, spec: SessionSpec, on_query: QueryHandler) -> Session:
            return await LocalEnvironment(isolation="process").open(spec, on_query)

    factory: Any = Plain
    register_environment("plain", factory)
    with RLM(client=ScriptedClient(lambda _: finish("context")), environment="plain") as rlm:
        assert rlm.completion("hello", "What?").response == "hello"


def test_a_factory_that_makes_no_environment_is_refused() -> None:
    def factory() -> Any:
        return {}

    register_environment("dict", factory)
    with pytest.raises(
        ConfigError, match=r"must return an rlm.environments.Environment, and returned a dict"
    ):
        make_environment("dict")


def test_a_factory_that_returns_a_class_in_place_of_an_environment_is_an_error() -> None:
    class Place:
        async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
            raise AssertionError

    register_environment("a class", lambda: Place)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match=r"and returned the class Place"):
        make_environment("a class")
