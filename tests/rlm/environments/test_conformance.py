"""Every place of the package passes the suite that places of others pass too."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlm.environments import Environment, Query, QueryReply, SessionSpec, make_environment
from rlm.environments.fork_server import fork_server
from rlm.environments.isolation import probe
from rlm.errors import ConfigError
from rlm.repl.interface import REPL, CellResult, QueryHandler
from rlm.testing.conformance import Bench, Capability, Check, ConformanceError, checks, run_all

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


class Broken(Environment):
    """A local place that breaks one promise.

    Args:
        spec: changes the specification of each REPL.
        result: changes the result of each cell.
        replies: changes the replies to each query.
        after: called with the session after each cell.
    """

    def __init__(
        self,
        *,
        spec: Callable[[SessionSpec], SessionSpec] = lambda spec: spec,
        result: Callable[[CellResult], CellResult] = lambda result: result,
        replies: Callable[[Sequence[QueryReply]], Sequence[QueryReply]] = lambda replies: replies,
        after: Callable[[Any], object] = lambda session: None,
    ) -> None:
        self._spec, self._result, self._replies, self._after = spec, result, replies, after

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        async def ask(query: Query) -> Sequence[QueryReply]:
            return self._replies(await on_query(query))

        repl = await make_environment("local", isolation="process").open(self._spec(spec), ask)
        execute = repl.execute

        async def run(code: str, *, timeout: float | None = None) -> CellResult:
            result = await execute(code, timeout=timeout)
            self._after(repl)
            return self._result(result)

        repl.execute = run  # type: ignore[method-assign]
        return repl


def settings(**changes: Any) -> Broken:
    return Broken(spec=lambda spec: replace(spec, settings=replace(spec.settings, **changes)))


def leave_open(session: Any) -> None:
    session.close = lambda: asyncio.sleep(0)


def forget_contexts(session: Any) -> None:
    session._spec = replace(session._spec, contexts=())


BROKEN = {
    "code_that_does_not_yield_is_killed": Broken(after=forget_contexts),
    "a_worker_that_dies_is_replaced": Broken(after=forget_contexts),
    "contexts_of_every_kind_arrive_equal": Broken(
        spec=lambda spec: replace(spec, contexts=spec.contexts[::-1])
    ),
    "the_history_is_there": Broken(spec=lambda spec: replace(spec, history=())),
    "tools_are_called_with_plain_values": Broken(spec=lambda spec: replace(spec, tools=None)),
    "prompts_and_replies_arrive_equal": Broken(replies=lambda replies: replies[::-1]),
    "output_of_programs_is_captured": Broken(result=lambda result: replace(result, stdout="")),
    "output_is_bounded_and_keeps_head_and_tail": settings(max_output_chars=1_000_000),
    "stdout_and_stderr_are_apart": Broken(result=lambda result: replace(result, stderr="")),
    "the_seconds_of_a_cell_are_measured": Broken(result=lambda result: replace(result, seconds=0.0)),
    "memory_is_limited": settings(limits={"memory_bytes": 4 << 30}),
    "a_killed_cell_costs_only_its_own_changes": settings(checkpoint_bytes=0),
    "closing_leaves_no_process": Broken(after=leave_open),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_place_that_breaks_a_promise_fails_its_check(name: str) -> None:
    [check] = [check for check in checks() if check.name == name]
    with pytest.raises(ConformanceError):
        await check.run(BROKEN[name], pace=0.2 if name == "closing_leaves_no_process" else 1.0)
    await asyncio.to_thread(fork_server().close)  # ends what a broken place left


async def test_a_check_that_hangs_fails() -> None:
    async def hang(bench: Bench) -> None:
        await asyncio.Event().wait()

    check = Check("hang", frozenset(), hang)
    with pytest.raises(ConformanceError, match=r"did not end within 0\.012 seconds"):
        await check.run(make_environment("local"), pace=0.0001)


def test_a_capability_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="no capability 'kill'; there are processes"):
        checks(without=["kill"])  # type: ignore[list-item]


def test_the_suite_needs_no_pytest() -> None:
    code = "import rlm.testing.conformance, sys; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
