"""Every place of the package passes the suite that places of others pass too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from typing import Any

import pytest

from rlm.environments import Environment, SessionSpec, make_environment
from rlm.environments.isolation import probe
from rlm.errors import ConfigError
from rlm.repl.interface import REPL, CellResult, QueryHandler
from rlm.testing.conformance import Capability, Check, ConformanceError, checks, run_all

_OVER_ONE_STREAM: list[Capability] = ["checkpoints"]
PLACES: dict[str, tuple[dict[str, Any], Collection[Capability]]] = {
    "sandbox": ({"name": "local", "isolation": "sandbox!"}, ()),
    "process": ({"name": "local", "isolation": "process"}, ()),
    "none": ({"name": "local", "isolation": "none"}, ("processes", "limits", "checkpoints")),
    "program": ({"name": "program", "command": [sys.executable, "{archive}"]}, _OVER_ONE_STREAM),
}
if probe().level != "sandbox":
    del PLACES["sandbox"]


@pytest.mark.parametrize(
    ("place", "check"),
    [
        pytest.param(place, check, id=f"{place}-{check}")
        for place, (_, without) in PLACES.items()
        for check in checks(without=without)
    ],
)
async def test_a_place_passes_each_check(place: str, check: Check) -> None:
    await check.run(make_environment(**PLACES[place][0]))


class Wrong(Environment):
    """A place whose REPLs print the wrong thing."""

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        repl = await make_environment("local").open(spec, on_query)
        execute = repl.execute

        async def wrong(code: str, *, timeout: float | None = None) -> CellResult:
            await execute(code, timeout=timeout)
            return await execute("print('wrong')")

        repl.execute = wrong  # type: ignore[method-assign]
        return repl


async def test_a_place_that_does_something_else_fails_every_check_that_runs_a_cell() -> None:
    results = await run_all(Wrong(), without=["processes", "limits", "checkpoints"])
    passed = [name for name, problem in results.items() if problem is None]
    assert passed == ["a_closed_repl_refuses_cells_and_contexts"]
    problem = results["a_namespace_lasts_from_cell_to_cell"]
    assert problem == "ConformanceError: x = 1\n  \n  expected: ('ok', '')\n  got: ('ok', 'wrong\\n')"
    assert issubclass(ConformanceError, AssertionError)


def test_a_capability_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no capability 'kill'; there are processes"):
        checks(without=["kill"])  # type: ignore[list-item]


def test_the_suite_needs_no_pytest() -> None:
    code = "import rlm.testing.conformance, sys; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
