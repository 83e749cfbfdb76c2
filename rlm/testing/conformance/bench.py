"""Checks, and the bench that opens REPLs for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlm.context import Context
from rlm.repl.interface import REPL, CellResult, Environment, Query, QueryHandler, QueryReply, SessionSpec
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.tools import Toolbox
from rlm.types import Message

Capability = Literal["processes", "limits", "checkpoints"]
"""A capability that a place may lack.

- processes: the code has a process of its own. A crash ends only the worker, code that does not yield is killed with its
  process tree, and the output of programs is captured.
- limits: the resource limits of `REPLSettings.limits` hold.
- checkpoints: a cell that is killed loses only its own changes to the namespace.
"""

_CHECK_SECONDS = 120.0


class ConformanceError(AssertionError):
    """A place does not do what a check expects. The message has the code, the expected result and the actual one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One behaviour of a place."""

    name: str
    """The checked behaviour in words, joined by underscores."""
    needs: frozenset[Capability]
    function: Callable[[Bench], Awaitable[None]]

    def __str__(self) -> str:
        return self.name

    async def run(self, environment: Environment, *, pace: float = 1.0) -> None:
        """Runs the check in REPLs of its own, and closes them.

        Args:
            environment: the place.
            pace: multiplies all time limits, for a place that is far away.

        Raises:
            ConformanceError: the place does something else, or the check has not ended after 120 seconds.
            REPLError: the place cannot start a REPL.
        """
        bench = Bench(environment, pace)
        limit = _CHECK_SECONDS * pace
        try:
            async with asyncio.timeout(limit) as timer:
                await self.function(bench)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise ConformanceError(f"the check did not end within {limit:g} seconds") from error
        finally:
            await bench.close()


class Bench:
    """Opens REPLs for a check.

    Args:
        environment: the place.
        pace: see `Check.run`.
    """

    def __init__(self, environment: Environment, pace: float) -> None:
        self._environment = environment
        self._opened: list[REPL] = []
        self.pace = pace

    async def open(
        self,
        *contexts: Any,
        history: Sequence[Sequence[Message]] = (),
        tools: dict[str, Any] | None = None,
        on_query: QueryHandler | None = None,
        **settings: Any,
    ) -> REPL:
        """Opens a REPL.

        Args:
            contexts: inputs of the REPL.
            history: see `SessionSpec`.
            tools: custom tools by name.
            on_query: None: answers a prompt with the kind of the query, a colon and the prompt, and fails prompts that start
                with "fail".
            settings: fields of `REPLSettings`.
        """
        spec = SessionSpec(
            [Context.of(value) for value in contexts],
            history,
            Toolbox.of(tools),
            settings=REPLSettings(**settings),
        )
        repl = await self._environment.open(spec, on_query or echo)
        self._opened.append(repl)
        return repl

    async def close(self) -> None:
        """Closes all REPLs."""
        for repl in self._opened:
            await repl.close()


async def echo(query: Query) -> list[QueryReply]:
    return [
        QueryReply("Error: it failed", failed=True)
        if isinstance(prompt, str) and prompt.startswith("fail")
        else QueryReply(f"{query.kind}:{prompt}")
        for prompt in query.prompts
    ]


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ConformanceError(f"{what}\n  expected: {expected!r}\n  got: {got!r}")


async def shows(repl: REPL, code: str, stdout: str) -> CellResult:
    """Runs a cell. It must succeed, and print `stdout`."""
    result = await repl.execute(code)
    expect(f"{code}\n  {result.stderr}", (result.status, result.stdout), ("ok", stdout))
    return result


async def ends(repl: REPL, code: str, status: str, error: str = "", timeout: float | None = None) -> None:
    """Runs a cell. It must end with `status`, and with an error line that contains `error`."""
    result = await repl.execute(code, timeout=timeout)
    expect(code, result.status, status)
    if error not in str(result.error):
        raise ConformanceError(f"{code}\n  expected an error with: {error}\n  got: {result.error}")


REGISTERED: list[Check] = []
"""All checks, in the order in which their modules are imported."""


def check(
    *needs: Capability,
) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Bench], Awaitable[None]]]:
    """Adds a function to the checks."""

    def add(function: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
        REGISTERED.append(Check(function.__name__, frozenset(needs), function))
        return function

    return add
