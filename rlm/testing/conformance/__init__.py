"""Checks that every place where REPLs run must pass. Ten lines test a place of your own, with pytest and pytest-asyncio:

    import pytest
    from rlm.testing.conformance import Check, checks
    from my_package import Cloud

    @pytest.mark.asyncio
    @pytest.mark.parametrize("check", checks(without={"checkpoints"}), ids=str)
    async def test_conformance(check: Check) -> None:
        await check.run(Cloud(region="eu"))

Or without pytest: `asyncio.run(run_all(Cloud(region="eu"), without={"checkpoints"}))`. The checks ask no model and need no
network. docs/places.md says how to write a place.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from rlm.errors import ConfigError
from rlm.repl.interface import Environment
from rlm.testing.conformance import code_checks, end_checks, host_checks  # noqa: F401 (they register their checks)
from rlm.testing.conformance.bench import REGISTERED, Bench, Capability, Check, ConformanceError

__all__ = ["Bench", "Capability", "Check", "ConformanceError", "checks", "run_all"]


def checks(*, without: Collection[Capability] = ()) -> list[Check]:
    """The checks that a place must pass.

    Args:
        without: capabilities that the place lacks. Checks that need one of them are left out.

    Raises:
        ConfigError: there is no such capability.
    """
    for capability in without:
        if capability not in get_args(Capability):
            known = ", ".join(get_args(Capability))
            raise ConfigError(f"there is no capability {capability!r}; there are {known}")
    return [check for check in REGISTERED if not check.needs & set(without)]


async def run_all(
    environment: Environment, *, without: Collection[Capability] = (), pace: float = 1.0
) -> dict[str, str | None]:
    """Runs all checks, one after the other.

    Args:
        environment: the place.
        without: see `checks`.
        pace: see `Check.run`.

    Returns:
        The failure of each check, by the check's name; None where the check passed.
    """
    results: dict[str, str | None] = {}
    for check in checks(without=without):
        try:
            await check.run(environment, pace=pace)
        except Exception as error:
            results[check.name] = f"{type(error).__name__}: {error}"
        else:
            results[check.name] = None
    return results
