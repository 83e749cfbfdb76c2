"""Environments by name."""

from __future__ import annotations

from typing import Any

import pytest

from rlm.environments import NAMES, make_environment
from rlm.environments.local import LocalEnvironment
from rlm.errors import ConfigError


def test_local_is_made() -> None:
    environment = make_environment("local", isolation="process")
    assert isinstance(environment, LocalEnvironment)
    assert environment.isolation == "process"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "local"])
def test_others_are_not_built_yet(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not built yet"):
        make_environment(name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("locl", {}, "no environment 'locl'; did you mean 'local'\\?"),
        ("qqq", {}, "no environment 'qqq'; there are local, ipython"),
        ("local", {"isolaton": "process"}, "no setting 'isolaton'; did you mean 'isolation'\\?"),
        ("local", {"isolation": "jail"}, "no isolation 'jail'"),
        ("local", {"isolation": "none"}, "comes with a later version"),
    ],
)
def test_what_does_not_exist_names_the_nearest(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment(name, **settings)
