"""Checks that every place where REPLs run has to pass. A place of one's own is tested in ten lines:

    import pytest
    from rlm.testing.conformance import Check, checks
    from my_package import Cloud

    @pytest.mark.parametrize("check", checks(without={"checkpoints"}), ids=str)
    async def test_conformance(check: Check) -> None:
        await check.run(Cloud(region="eu"))

Or without pytest: `asyncio.run(run_all(Cloud(region="eu"), without={"checkpoints"}))`. The checks ask no model and need no
network. docs/places.md says how to write a place.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlm.context import Context
from rlm.errors import ConfigError, REPLError
from rlm.repl.interface import (
    REPL,
    CellResult,
    Environment,
    Query,
    QueryHandler,
    QueryReply,
    SessionSpec,
)
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.tools import Toolbox
from rlm.types import Message

Capability = Literal["processes", "limits", "checkpoints"]
"""What a place may lack.

- processes: the code has a process of its own. A crash ends only the worker, code that does not yield is killed with all
  that it started, and the output of programs is captured.
- limits: the resource limits of `REPLSettings.limits` hold.
- checkpoints: a cell that is killed costs only its own changes to the namespace.
"""


class ConformanceError(AssertionError):
    """A place does not do what a check expects. The message has the code, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Check:
    """One behaviour of a place."""

    name: str
    """In words, with underscores."""
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
            ConformanceError: the place does something else.
            REPLError: the place cannot start a REPL.
        """
        bench = Bench(environment, pace)
        try:
            await self.function(bench)
        finally:
            await bench.close()


def checks(*, without: Collection[Capability] = ()) -> list[Check]:
    """The checks that a place has to pass.

    Args:
        without: what the place lacks. Checks that need it are left out.

    Raises:
        ConfigError: there is no such capability.
    """
    for capability in without:
        if capability not in get_args(Capability):
            known = ", ".join(get_args(Capability))
            raise ConfigError(f"there is no capability {capability!r}; there are {known}")
    return [check for check in _CHECKS if not check.needs & set(without)]


async def run_all(
    environment: Environment, *, without: Collection[Capability] = (), pace: float = 1.0
) -> dict[str, str | None]:
    """Runs all checks, one after the other.

    Args:
        environment, pace: see `Check.run`.
        without: see `checks`.

    Returns:
        What is wrong, by the name of the check; None where the check passed.
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


class Bench:
    """Opens REPLs for a check.

    Args:
        environment, pace: see `Check.run`.
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
            contexts, history, tools: see `SessionSpec`.
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
        repl = await self._environment.open(spec, on_query or _echo)
        self._opened.append(repl)
        return repl

    async def close(self) -> None:
        """Closes all REPLs."""
        for repl in self._opened:
            await repl.close()


async def _echo(query: Query) -> list[QueryReply]:
    return [
        QueryReply("Error: it failed", failed=True)
        if isinstance(prompt, str) and prompt.startswith("fail")
        else QueryReply(f"{query.kind}:{prompt}")
        for prompt in query.prompts
    ]


def _expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        raise ConformanceError(f"{what}\n  expected: {expected!r}\n  got: {got!r}")


async def _shows(repl: REPL, code: str, stdout: str) -> CellResult:
    """Runs a cell that has to succeed, and to print `stdout`."""
    result = await repl.execute(code)
    _expect(f"{code}\n  {result.stderr}", (result.status, result.stdout), ("ok", stdout))
    return result


async def _ends(repl: REPL, code: str, status: str, error: str = "", timeout: float | None = None) -> None:
    """Runs a cell that has to end with `status`, and with an error line that has `error` in it."""
    result = await repl.execute(code, timeout=timeout)
    _expect(code, result.status, status)
    if error not in str(result.error):
        raise ConformanceError(f"{code}\n  expected an error with: {error}\n  got: {result.error}")


_CHECKS: list[Check] = []


def _check(
    *needs: Capability,
) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Bench], Awaitable[None]]]:
    """Adds a function to the checks."""

    def add(function: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
        _CHECKS.append(Check(function.__name__, frozenset(needs), function))
        return function

    return add


# the namespace


@_check()
async def a_namespace_lasts_from_cell_to_cell(bench: Bench) -> None:
    repl = await bench.open()
    for code, stdout in (
        ("x = 1", ""),
        ("def f():\n    return x + 1", ""),
        ("class C:\n    def g(self):\n        return f()", ""),
        ("x = 2\nC().g()", "3\n"),
        ("_ + 1", "4\n"),
        ("def h():\n    global y\n    y = 5\nh()\ny", "5\n"),
        ("del y\n'y' in globals()", "False\n"),
        ("import asyncio\nawait asyncio.sleep(0)\nprint('awaited')", "awaited\n"),
        ("import json; print(json.dumps({'a': [1, None]}))", '{"a": [1, null]}\n'),
    ):
        await _shows(repl, code, stdout)


@_check()
async def an_exception_keeps_the_names_before_it_and_shows_its_line(bench: Bench) -> None:
    repl = await bench.open()
    result = await repl.execute("kept = 1\nkept / 0\nkept = 2")
    _expect("the result", (result.status, result.error), ("error", "ZeroDivisionError: division by zero"))
    for part in ("line 2", "kept / 0", "ZeroDivisionError"):
        _expect(f"{part!r} in the traceback {result.stderr}", part in result.stderr, True)
    await _shows(repl, "kept", "1\n")
    await _ends(repl, "def broken(:", "error", "SyntaxError")
    await _shows(repl, "kept", "1\n")


@_check()
async def exit_ends_the_cell_and_not_the_session(bench: Bench) -> None:
    repl = await bench.open()
    await repl.execute("kept = 1")
    await _ends(repl, "import sys; sys.exit(3)", "exit")
    await _shows(repl, "kept", "1\n")


@_check()
async def stdin_is_empty(bench: Bench) -> None:
    await _ends(await bench.open(), "input('?')", "error", "EOFError")


@_check()
async def each_repl_has_a_namespace_of_its_own(bench: Bench) -> None:
    first, second = await bench.open("first"), await bench.open("second")
    await asyncio.gather(first.execute("x = 1"), second.execute("x = 2"))
    await _shows(first, "x, context", "(1, 'first')\n")
    await _shows(second, "x, context", "(2, 'second')\n")


@_check()
async def names_and_values_are_described(bench: Bench) -> None:
    result = await (await bench.open()).execute("names = ['a', 'b']; count = 2")
    _expect("the names", (set(result.locals), result.stdout), ({"names", "count"}, ""))


@_check()
async def a_seed_makes_chance_repeat(bench: Bench) -> None:
    code = "import random; random.random(), hash('text')"
    results = [await (await bench.open(seed=7)).execute(code) for _ in range(2)]
    _expect("the second REPL", results[1].stdout, results[0].stdout)
    other = await (await bench.open(seed=8)).execute(code)
    _expect("another seed gives another number", other.stdout != results[0].stdout, True)


# contexts

_VALUES: tuple[Any, ...] = (
    "",
    "text",
    "'''\"\"\"\\",
    "a\0b\r\nc\rd\n",
    "\udc80 \ud800 \U0001f600 é 中",
    bytes(range(256)),
    [1, "two", 3.0, None, True, b"six", (7, [8])],
    {1: "int", "1": "str", (1, 2): "tuple", None: "none", 2.5: "float"},
    ({"a": [{"b": ({"c": {1, 2}}, frozenset({"x"}))}]},),
    [2**200, -(2**63), 1e308, -0.0, 3 + 4j],
    ["\udc80", {"\0": "\r\n"}],
    [],
    {},
)


@_check()
async def contexts_of_every_kind_arrive_equal(bench: Bench) -> None:
    repl = await bench.open(*_VALUES)
    for number, value in enumerate(_VALUES):
        name = f"context_{number}"
        await _shows(repl, f"{name} == {value!a}, type({name}).__name__", f"{(True, type(value).__name__)}\n")
    await _shows(repl, f"context == context_{len(_VALUES) - 1}", "True\n")


@_check()
async def a_large_context_arrives_whole(bench: Bench) -> None:
    text = "The quick brown fox, é.\n" * 400_000
    repl = await bench.open("first", text)
    code = "import hashlib; len(context), hashlib.sha256(context.encode()).hexdigest(), context_0"
    await _shows(repl, code, f"{(len(text), Context(text).sha256, 'first')}\n")


@_check()
async def more_contexts_than_descriptors_arrive(bench: Bench) -> None:
    repl = await bench.open(*[f"number {number}" for number in range(300)])
    code = "[globals()[f'context_{n}'] for n in range(300)] == [f'number {n}' for n in range(300)], context"
    await _shows(repl, code, "(True, 'number 299')\n")


@_check()
async def the_history_is_there(bench: Bench) -> None:
    repl = await bench.open(history=[[{"role": "user", "content": "é"}]])
    await _shows(repl, "history", "[[{'role': 'user', 'content': 'é'}]]\n")


# sub-calls


@_check()
async def the_four_functions_ask_the_host(bench: Bench) -> None:
    asked: list[Query] = []

    async def note(query: Query) -> list[QueryReply]:
        asked.append(query)
        return await _echo(query)

    repl = await bench.open(on_query=note)
    await _shows(repl, "llm_query('a')", "'llm:a'\n")
    await _shows(repl, "llm_query_batched(['b', 'c'], model='small')", "['llm:b', 'llm:c']\n")
    await _shows(repl, "rlm_query('d')", "'rlm:d'\n")
    await _shows(repl, "rlm_query_batched(['e'])", "['rlm:e']\n")
    kinds = [("llm", None, False), ("llm", "small", True), ("rlm", None, False), ("rlm", None, True)]
    _expect("the queries", [(query.kind, query.model, query.batched) for query in asked], kinds)


@_check()
async def prompts_and_replies_arrive_equal(bench: Bench) -> None:
    repl = await bench.open()
    text = "\udc80 \0 \r\n é " * 20_000
    await _shows(repl, f"p = {text[:12]!a} * 20_000; llm_query(p) == 'llm:' + p", "True\n")
    code = "r = llm_query_batched([str(n) for n in range(1000)]); r == [f'llm:{n}' for n in range(1000)]"
    await _shows(repl, code, "True\n")


@_check()
async def a_failed_sub_call_is_a_value_of_its_own_type(bench: Bench) -> None:
    repl = await bench.open()
    code = "good, bad = llm_query_batched(['a', 'fail'])\ngood, bad, isinstance(bad, SubcallError)"
    await _shows(repl, code, "('llm:a', 'Error: it failed', True)\n")


@_check()
async def threads_ask_at_the_same_time(bench: Bench) -> None:
    waiting = asyncio.Barrier(8)

    async def meet(query: Query) -> list[QueryReply]:
        async with asyncio.timeout(20 * bench.pace):
            await waiting.wait()
        return await _echo(query)

    repl = await bench.open(on_query=meet)
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: print(list(pool.map(llm_query, 'abcdefgh')))"
    )
    await _shows(repl, code, f"{[f'llm:{letter}' for letter in 'abcdefgh']}\n")


# tools


@_check()
async def tools_are_called_with_plain_values(bench: Bench) -> None:
    async def later(value: Any, *, times: int = 1) -> Any:
        await asyncio.sleep(0)
        return [value] * times

    class RefusedError(Exception):
        pass

    def fail(key: str) -> None:
        raise KeyError(key)

    def refuse() -> None:
        raise RefusedError("no")

    tools = {"double": lambda x: 2 * x, "later": later, "fail": fail, "refuse": refuse, "UNIT": "km"}
    repl = await bench.open(tools=tools)
    await _shows(repl, "double(21), double((1, b'x')), UNIT", "(42, (1, b'x', 1, b'x'), 'km')\n")
    await _shows(repl, "later({'a': {1}}, times=2)", "[{'a': {1}}, {'a': {1}}]\n")
    await _shows(repl, "try: fail('k')\nexcept KeyError as error: print(error)", "'k'\n")
    await _shows(repl, "try: refuse()\nexcept ToolError as error: print(error)", "RefusedError: no\n")
    await repl.execute("double = None")
    await _shows(repl, "double(2)", "4\n")


# the answer


@_check()
async def the_answer_is_read_in_every_form(bench: Bench) -> None:
    for code in (
        'answer["content"] = "42"; answer["ready"] = True',
        'answer.update(ready=True, content="42")',
        'answer |= {"content": "42", "ready": True}',
        'answer = {"content": "42", "ready": True}',
        'answer["content"] = 42; answer["ready"] = True',
        'answer.update(content="42", ready=True); 1 / 0',
    ):
        repl = await bench.open()
        answer = (await repl.execute(code)).answer
        _expect(code, (answer.content, answer.ready, answer.note), ("42", True, None))
        await _shows(repl, "str(answer['content'])", "'42'\n")


@_check()
async def an_answer_that_cannot_work_has_a_note(bench: Bench) -> None:
    repl = await bench.open()
    answer = (await repl.execute("answer = 42")).answer
    _expect("answer = 42", (answer.content, answer.ready, answer.note is not None), ("42", False, True))
    await _shows(repl, "sorted(answer)", "['content', 'ready']\n")


# time limits


@_check()
async def an_interrupted_cell_keeps_the_namespace(bench: Bench) -> None:
    repl = await bench.open(interrupt_grace=10.0 * bench.pace)
    await repl.execute("kept = 1")
    for code in ("while True: pass", "import time\nwhile True: time.sleep(0.01)"):
        await _ends(repl, f"started = 2\n{code}", "interrupted", "the time limit of a cell", 0.3 * bench.pace)
        await _shows(repl, "kept, started", "(1, 2)\n")


@_check()
async def an_interrupt_cancels_the_query_on_its_way(bench: Bench) -> None:
    cancelled = asyncio.Event()

    async def wait(query: Query) -> list[QueryReply]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    repl = await bench.open(on_query=wait, interrupt_grace=10.0 * bench.pace)
    await _ends(repl, "kept = 1\nllm_query('x')", "interrupted", timeout=0.5 * bench.pace)
    _expect("the query was cancelled", cancelled.is_set(), True)
    await _shows(repl, "kept", "1\n")


@_check()
async def the_caller_interrupts_with_a_reason(bench: Bench) -> None:
    repl = await bench.open(stop_grace=10.0 * bench.pace)
    running = asyncio.create_task(repl.execute("while True: pass"))
    await asyncio.sleep(0.3 * bench.pace)
    repl.interrupt("the budget is spent")
    result = await running
    reason = str(result.error).endswith(": the budget is spent")
    _expect(str(result.error), (result.status, reason), ("interrupted", True))
    repl.interrupt("no cell runs")
    await _shows(repl, "1", "1\n")


@_check()
async def a_cancelled_caller_stops_its_cell(bench: Bench) -> None:
    repl = await bench.open(stop_grace=10.0 * bench.pace)
    await repl.execute("count = 0")
    running = asyncio.create_task(repl.execute("while True: count += 1"))
    await asyncio.sleep(0.3 * bench.pace)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await _shows(repl, "count > 0", "True\n")


# kills


@_check("processes")
async def code_that_does_not_yield_is_killed(bench: Bench) -> None:
    repl = await bench.open("the context", interrupt_grace=0.5 * bench.pace, checkpoint_bytes=0)
    await repl.execute(
        "gone = 1; answer['content'] = 'kept'\n"
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); print(child.pid)"
    )
    result = await repl.execute("print(child.pid, flush=True)\nsum(range(10**12))", timeout=1.0 * bench.pace)
    _expect(str(result.error), (result.status, result.answer.content), ("killed", "kept"))
    await _shows(repl, "context, 'gone' in globals(), answer['content']", "('the context', False, 'kept')\n")
    pid = int(result.stdout.split()[0])
    code = f"import os\ntry: os.kill({pid}, 0)\nexcept ProcessLookupError: print('it has ended')"
    await _shows(repl, code, "it has ended\n")


@_check("processes")
async def a_worker_that_dies_is_replaced(bench: Bench) -> None:
    repl = await bench.open("the context", checkpoint_bytes=0)
    for code in (
        "import os; os._exit(5)",
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ):
        await _ends(repl, f"gone = 1\n{code}\nimport time; time.sleep(1000)", "died")
        await _shows(
            repl, "context, 'gone' in globals(), llm_query('x')", "('the context', False, 'llm:x')\n"
        )


@_check("processes", "checkpoints")
async def a_killed_cell_costs_only_its_own_changes(bench: Bench) -> None:
    repl = await bench.open("the context", interrupt_grace=0.3 * bench.pace, checkpoint_after=0.0)
    await repl.execute("kept = [1]; answer['content'] = 'kept'")
    await _ends(
        repl, "kept.append(2)\nsum(range(10**12))", "killed", "the namespace is as it was", 0.3 * bench.pace
    )
    await _shows(repl, "context, kept", "('the context', [1])\n")


@_check("processes", "limits")
async def memory_is_limited(bench: Bench) -> None:
    repl = await bench.open("the context", limits={"memory_bytes": 300 << 20})
    await _ends(repl, "kept = 1\nx = bytearray(100 << 30)", "error", "MemoryError")
    await _shows(repl, "kept, context", "(1, 'the context')\n")


# output


@_check()
async def output_is_bounded_and_keeps_head_and_tail(bench: Bench) -> None:
    repl = await bench.open(max_output_chars=1000)
    result = await repl.execute(
        "print('head'); [print('x' * 100) for _ in range(5000)]; print('tail'); 1 / 0"
    )
    _expect("characters of stdout", len(result.stdout) < 1200, True)
    _expect("the head", result.stdout.startswith("head\n"), True)
    _expect("the tail", result.stdout.endswith("tail\n"), True)
    _expect("the error", "ZeroDivisionError" in result.stderr, True)


@_check()
async def stdout_and_stderr_are_apart(bench: Bench) -> None:
    result = await (await bench.open()).execute("import sys; print('out'); print('err', file=sys.stderr)")
    _expect("stdout and stderr", (result.stdout, result.stderr), ("out\n", "err\n"))


@_check("processes")
async def output_of_programs_is_captured(bench: Bench) -> None:
    repl = await bench.open()
    await _shows(
        repl, "import os\nprint('before', flush=True)\ncode = os.system('echo shell')", "before\nshell\n"
    )


@_check("processes")
async def code_that_writes_to_every_descriptor_does_not_disturb_the_host(bench: Bench) -> None:
    repl = await bench.open("the context")
    code = "import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'garbage' * 100)\n    except OSError: pass"
    result = await repl.execute(code)
    _expect(f"{result.status}: the cell ended or died", result.status in ("ok", "died"), True)
    after = await repl.execute("context")
    if after.status == "died":  # the garbage was noticed now
        after = await repl.execute("context")
    _expect("the next cell", after.stdout, "'the context'\n")


# extension


@_check()
async def an_extension_brings_contexts_and_history(bench: Bench) -> None:
    repl = await bench.open("first")
    await repl.execute("kept = 1; answer.update(content='old', ready=True)")
    await repl.extend([Context("second"), Context(["third"])], [[{"role": "user", "content": "x"}]])
    code = "kept, context_0, context_1, context, history[0][0]['content'], answer['content']"
    await _shows(repl, code, "(1, 'first', 'second', ['third'], 'x', 'old')\n")
    await repl.extend(fresh_answer=True)
    await _shows(repl, "answer", "{'content': '', 'ready': False}\n")
    text = random.Random(1).randbytes(2_000_000)
    await repl.extend([Context(text)])
    await _shows(repl, "import hashlib; hashlib.sha256(context).hexdigest()", f"'{_sha256(text)}'\n")


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


@_check("processes")
async def a_fresh_worker_has_what_an_extension_brought(bench: Bench) -> None:
    repl = await bench.open("first", checkpoint_bytes=0)
    await repl.extend([Context("second")])
    await _ends(repl, "import os; os._exit(1)", "died")
    await _shows(repl, "context_0, context", "('first', 'second')\n")


# the end


@_check()
async def a_closed_repl_refuses_cells(bench: Bench) -> None:
    repl = await bench.open()
    await repl.close()
    await repl.close()
    try:
        await repl.execute("1")
    except REPLError:
        return
    raise ConformanceError("a closed REPL ran a cell; expected: REPLError")


@_check()
async def closing_ends_the_cell_that_runs(bench: Bench) -> None:
    repl = await bench.open()
    running = asyncio.create_task(repl.execute("import time\nwhile True: time.sleep(0.01)"))
    await asyncio.sleep(0.3 * bench.pace)
    async with asyncio.timeout(5 * bench.pace):
        await repl.close()
        result = await running
    _expect("the status of the cell", result.status, "killed")
