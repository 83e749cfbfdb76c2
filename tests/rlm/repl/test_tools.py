"""Tools: functions of the host that the code calls, and values beside the contexts."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.environments import REPL
from rlm.repl.calls import MOST_CALLS
from rlm.repl.tools import Toolbox, ToolReport
from rlm.repl.worker.protocol import messages, tool_values
from rlm.repl.worker.protocol.kinds import FromWorker
from rlm.repl.worker.protocol.tool_values import MOST_BYTES, MOST_LEVELS

OpenREPL = Callable[..., Awaitable[REPL]]


def search(query: str, limit: int = 10, *more: str, exact: bool = False, **options: Any) -> list[str]:
    """Searches the archive.

    The index is from 2024.
    """
    return [query, *map(str, (limit, *more, exact, *options.items()))]


def echo(value: Any) -> Any:
    return value


async def test_a_tool_in_the_repl_looks_like_its_function(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"search": search}))
    result = await repl.execute(
        "import inspect\nprint(inspect.signature(search), search.__name__, search.__module__)\n"
        "print(inspect.getdoc(search)); help(search)"
    )
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "(query: str, limit: int = 10, *more: str, exact: bool = False, **options: Any) -> list[str] search __main__"
    )
    assert lines[1:4] == ["Searches the archive.", "", "The index is from 2024."]
    assert "search(query: str, limit: int = 10" in "\n".join(lines[4:])


@pytest.mark.parametrize(
    "function",
    [
        lambda: None,
        lambda a, /: None,
        lambda a, /, b, c=[1], *, d, e="x": None,
        lambda a, b=1, /: None,
        lambda *args, key: None,
        lambda *, key=(1, 2): None,
        lambda **options: None,
        search,
    ],
)
async def test_every_kind_of_parameter_is_passed_on(open_repl: OpenREPL, function: Any) -> None:
    import inspect

    box = Toolbox.of({"tool": function})
    repl = await open_repl(tools=box)
    shown = (await repl.execute("import inspect; print(inspect.signature(tool))")).stdout.strip()
    assert f"`tool{shown}`" in box.describe()
    assert shown.replace("'", "") == str(inspect.signature(function)).replace("'", "")


VALUES: list[Any] = [
    None,
    True,
    5,
    2**200,
    -(2**63),
    1.5,
    -0.0,
    math.inf,
    3 + 4j,
    "a\0b\r\n\udc80\ud83d\ude00\U0001f600",
    bytes(range(256)),
    (),
    [],
    {},
    set(),
    frozenset(),
    [1, (2, {3}), frozenset({b"4"})],
    {"a": 1, "b": [None]},
    {1: "int", "1": "str", (1, 2): "tuple", None: {"d": {"t": [1]}}, False: 0},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:30])
async def test_values_go_both_ways_with_their_types(open_repl: OpenREPL, value: Any) -> None:
    given: list[Any] = []

    def same(value: Any) -> Any:
        given.append(value)
        return value

    repl = await open_repl([value], tools=Toolbox.of({"same": same}))
    assert (await repl.execute("ascii(same(context[0])) == ascii(context[0])")).stdout == "True\n"
    assert ascii(given) == ascii([value])


async def test_huge_numbers_go_both_ways(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"echo": echo, "HUGE": 7**9999}))
    assert (
        await repl.execute("echo(7**9999) == 7**9999 == HUGE, echo(-(7**9999)) == -HUGE")
    ).stdout == "(True, True)\n"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
keys = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars, max_size=3)
trees = st.recursive(
    scalars | st.complex_numbers() | st.sets(scalars, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(trees)
@settings(max_examples=200, deadline=None)
def test_values_arrive_as_they_were_sent(value: Any) -> None:
    sent = messages.dump(tool_values.to_json(value, "value"))
    assert exact(tool_values.from_json(messages.load(sent))) == exact(value)


def exact(value: Any) -> Any:
    """A value as text that shows its types. The order of sets does not matter."""
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(ascii(exact(item)) for item in value)
    if isinstance(value, list | tuple):
        return type(value).__name__, [exact(item) for item in value]
    if isinstance(value, dict):
        return [(exact(key), exact(item)) for key, item in value.items()]
    return ascii(value)


async def test_nan_goes_both_ways(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"is_nan": math.isnan, "nan": lambda: math.nan}))
    assert (await repl.execute("is_nan(float('nan')), nan() != nan()")).stdout == "(True, True)\n"


async def test_subclasses_arrive_as_the_plain_value(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"kind": lambda value: repr((type(value).__name__, value))}))
    result = await repl.execute(
        "import collections, enum\nclass E(enum.IntEnum): A = 1\nclass S(str): pass\n"
        "P = collections.namedtuple('P', 'x')\n"
        "for v in [collections.Counter('aab'), E.A, S('x'), P(1), bytearray(b'x')]: print(kind(v))"
    )
    assert result.stdout.splitlines() == [
        "('dict', {'a': 2, 'b': 1})",
        "('int', 1)",
        "('str', 'x')",
        "('tuple', (1,))",
        "('bytes', b'x')",
    ]


async def test_numbers_of_numpy_arrive_as_numbers(open_repl: OpenREPL) -> None:
    tools = {
        "kind": lambda value: type(value).__name__,
        "least": lambda: [np.int64(1), np.float32(0.5), np.True_],
    }
    repl = await open_repl(tools=Toolbox.of(tools))
    result = await repl.execute(
        "import numpy as np\n"
        "print(*map(kind, [np.int64(1), np.uint8(1), np.float64(1), np.float32(1), np.bool_(True), np.str_('x')]))\n"
        "least(), kind([np.arange(3)[1]])"
    )
    assert result.stdout == "int int float float bool str\n([1, 0.5, True], 'list')\n"
    for value in ("np.arange(3)", "np.longdouble(1)"):
        result = await repl.execute(f"kind({value})")
        assert str(result.error).startswith("TypeError: argument 1 of kind() is of type")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("echo(object())", "TypeError: argument 1 of echo() is of type object: tools take str, bytes, int"),
        (
            "echo([1, {'a': (print,)}])",
            "TypeError: argument 1 of echo()[1]['a'][0] is of type builtin_function",
        ),
        ("echo(value={(1, len): 2})", "TypeError: argument 'value' of echo()[a key][1] is of type builtin"),
        ("x = []; x.append(x); echo(x)", "ValueError: argument 1 of echo()[0][0]"),
        (
            "echo('x' * 70_000_000)",
            "ValueError: the arguments of echo() may have 32 MB of text together, and these have more",
        ),
        ("echo()", "TypeError: echo(): missing a required argument: 'value'"),
        ("echo(1, 2)", "TypeError: echo(): too many positional arguments"),
        ("slow()", "TypeError: slow(): missing a required argument: 'value'"),
        ("big()", "ValueError: the result of big() has 66 MB, and may have 64: ask for less"),
        ("strange()", "TypeError: result of strange()[0] is an object: only str, bytes, int"),
        ("function()", "TypeError: result of function() is a builtin_function_or_method: only str"),
    ],
)
async def test_calls_that_cannot_work_raise_in_the_code(open_repl: OpenREPL, code: str, error: str) -> None:
    async def slow(value: Any) -> Any:
        return value

    tools = {
        "echo": echo,
        "slow": slow,
        "big": lambda: b"x" * 70_000_000,
        "strange": lambda: [object()],
        "function": lambda: print,
    }
    repl = await open_repl(tools=Toolbox.of(tools))
    result = await repl.execute(code)
    assert str(result.error).startswith(error)
    assert (await repl.execute("echo(5)")).stdout == "5\n"


class LookupFailedError(LookupError):
    pass


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def fail(kind: str) -> Any:
    match kind:
        case "value":
            raise ValueError("bad value")
        case "key":
            raise KeyError("name")
        case "file":
            raise FileNotFoundError(2, "No such file or directory", "data.csv")
        case "empty":
            raise AssertionError
        case "own":
            raise LookupFailedError("not there")
        case "unicode":
            b"\xff".decode()
        case "unprintable":
            raise UnprintableError
        case "stop":
            raise StopIteration("at the end")
        case "exit":
            sys.exit(3)
        case "cancelled":
            raise asyncio.CancelledError
        case "long":
            raise ValueError("x" * 1_000_000)


async def fail_later(kind: str) -> Any:
    await asyncio.sleep(0)
    if kind == "stop":
        raise ValueError("a coroutine cannot raise StopIteration")
    return fail(kind)


@pytest.mark.parametrize(
    ("kind", "error", "caught"),
    [
        ("value", "ValueError: bad value", "ValueError"),
        ("key", "KeyError: 'name'", "KeyError"),
        ("file", "FileNotFoundError: [Errno 2] No such file or directory: 'data.csv'", "FileNotFoundError"),
        ("empty", "AssertionError", "AssertionError"),
        ("own", "ToolError: LookupFailedError: not there", "ToolError"),
        ("unicode", "ToolError: UnicodeDecodeError: 'utf-8' codec can't decode", "ToolError"),
        ("unprintable", "ToolError: UnprintableError", "ToolError"),
        ("exit", "ToolError: SystemExit: 3", "ToolError"),
        ("cancelled", "ToolError: CancelledError", "ToolError"),
        ("long", "ValueError: xxx", "ValueError"),
    ],
)
@pytest.mark.parametrize("tool", ["fail", "fail_later"])
async def test_exceptions_arrive_with_type_and_message(
    open_repl: OpenREPL, tool: str, kind: str, error: str, caught: str
) -> None:
    repl = await open_repl(tools=Toolbox.of({"fail": fail, "fail_later": fail_later}))
    result = await repl.execute(f"{tool}({kind!r})")
    assert str(result.error).startswith(error)
    assert result.stderr.splitlines()[:2] == [
        "Traceback (most recent call last):",
        '  File "<cell 1>", line 1, in <module>',
    ]
    assert "rlm" not in result.stderr
    code = f"try: {tool}({kind!r})\nexcept Exception as e: print(type(e) is {caught}, len(str(e)) < 30_000)"
    assert (await repl.execute(code)).stdout == "True True\n"


async def test_stop_iteration_of_a_function_arrives(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"fail": fail}))
    assert (await repl.execute("fail('stop')")).error == "StopIteration: at the end"


async def test_an_error_of_a_tool_is_a_runtime_error_in_the_code(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"fail": fail}))
    result = await repl.execute("try: fail('own')\nexcept RuntimeError as error: print(repr(error))")
    assert result.stdout == "ToolError('LookupFailedError: not there')\n"


async def test_a_function_that_blocks_does_not_block_the_event_loop(open_repl: OpenREPL) -> None:
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait() -> int:
        loop.call_soon_threadsafe(entered.set)
        assert leave.wait(30)
        return 5

    one = await open_repl(tools=Toolbox.of({"wait": wait}))
    other = await open_repl()
    cell = asyncio.create_task(one.execute("wait()"))
    await entered.wait()
    assert (await other.execute("1 + 1")).stdout == "2\n"
    leave.set()
    assert (await cell).stdout == "5\n"


async def test_coroutines_run_on_the_loop_of_the_caller(open_repl: OpenREPL) -> None:
    here = asyncio.get_running_loop()

    async def where(value: str = "") -> str:
        return f"{value}{asyncio.get_running_loop() is here}"

    class Object:
        async def __call__(self) -> str:
            return await where("object ")

        async def method(self) -> str:
            return await where("method ")

    import functools

    tools = {
        "where": where,
        "later": lambda: where("later "),
        "thing": Object(),
        "method": Object().method,
        "part": functools.partial(where, "part "),
        "thread": lambda: threading.current_thread() is threading.main_thread(),
    }
    repl = await open_repl(tools=Toolbox.of(tools))
    result = await repl.execute("where(), later(), thing(), method(), part(), thread()")
    assert result.stdout == "('True', 'later True', 'object True', 'method True', 'part True', False)\n"


async def test_threads_of_the_code_call_at_once(open_repl: OpenREPL) -> None:
    together, barrier = asyncio.Barrier(8), threading.Barrier(8)

    async def meet(value: int) -> int:
        await together.wait()
        return -value

    def meet_in_threads(value: int) -> int:
        barrier.wait(30)
        return 2 * value

    repl = await open_repl(tools=Toolbox.of({"meet": meet, "meet_in_threads": meet_in_threads}))
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    for tool in (meet, meet_in_threads): print(list(pool.map(tool, range(64))))\n"
        "    both = pool.submit(llm_query, 'q'), pool.submit(lambda: [meet_in_threads(0) for _ in ()])\n"
        "both[0].result()"
    )
    result = await repl.execute(code)
    assert result.stdout.splitlines() == [
        str([-n for n in range(64)]),
        str([2 * n for n in range(64)]),
        "'llm:q'",
    ]


async def test_an_interrupt_cancels_a_coroutine(open_repl: OpenREPL) -> None:
    cancelled = asyncio.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    repl = await open_repl(tools=Toolbox.of({"never": never, "echo": echo}))
    result = await repl.execute("kept = 1\nnever()", timeout=0.1)
    assert result.status == "interrupted"
    assert "KeyboardInterrupt" in result.stderr
    await cancelled.wait()
    assert (await repl.execute("kept, echo(2)")).stdout == "(1, 2)\n"


async def test_an_interrupt_abandons_functions_in_threads(open_repl: OpenREPL) -> None:
    leave = threading.Event()
    repl = await open_repl(tools=Toolbox.of({"wait": lambda: leave.wait(30), "echo": echo}))
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(80) as pool: list(pool.map(lambda _: wait(), range(80)))"
    )
    result = await repl.execute(code, timeout=0.5)
    assert result.status == "interrupted"
    # The abandoned functions still occupy their threads. The next call gets another one.
    assert (await repl.execute("echo(2)")).stdout == "2\n"
    leave.set()


async def test_closing_cancels_calls(open_repl: OpenREPL) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def never() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    repl = await open_repl(tools=Toolbox.of({"never": never}))
    cell = asyncio.create_task(repl.execute("never()"))
    await entered.wait()
    await repl.close()
    assert cancelled.is_set()
    assert (await cell).status == "killed"


async def test_a_fresh_worker_has_the_tools(open_repl: OpenREPL) -> None:
    repl = await open_repl("text", tools=Toolbox.of({"echo": echo, "LABELS": {"a": (1, 2)}}))
    assert (await repl.execute("import os; os._exit(3)")).status == "died"
    assert (await repl.execute("echo(1), LABELS, context, context_0")).stdout == (
        "(1, {'a': (1, 2)}, 'text', 'text')\n"
    )


async def test_a_forked_child_cannot_call(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"echo": echo}))
    result = await repl.execute(
        "import os\npid = os.fork()\nif not pid:\n    try: echo(1)\n"
        "    except RuntimeError as error: print('child:', error, flush=True)\n    os._exit(0)\n"
        "os.waitpid(pid, 0)\necho(2)"
    )
    assert result.stdout.startswith(
        "child: sub-models and tools can be asked from the REPL's own process only"
    )
    assert result.stdout.endswith("2\n")


async def test_the_code_finds_values_of_every_kind_by_name(open_repl: OpenREPL) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    tools = {
        "LIMIT": 5,
        "NOTHING": None,
        "NAMES": {"x", "y"},
        "TEXT": "t" * 100_000,
        "ROWS": {"tool": [{"a": 1}], "description": "some rows"},
        "FRAME": frame,
    }
    repl = await open_repl("the context", tools=Toolbox.of(tools))
    result = await repl.execute(
        "print(LIMIT, NOTHING, sorted(NAMES), len(TEXT), ROWS, context, context_0)\nFRAME['a'].sum()"
    )
    assert result.stdout == "5 None ['x', 'y'] 100000 [{'a': 1}] the context the context\nnp.int64(3)\n"


async def test_the_listener_gets_a_report_of_each_call(open_repl: OpenREPL) -> None:
    calls: list[ToolReport] = []
    repl = await open_repl(tools=Toolbox.of({"echo": echo, "fail": fail}), on_tool=calls.append)
    await repl.execute("echo(1)\nfail('own')")
    assert [(call.name, call.error) for call in calls] == [
        ("echo", None),
        ("fail", "LookupFailedError: not there"),
    ]
    assert all(0 <= call.seconds < 60 for call in calls)


async def test_reports_of_calls_are_bounded(open_repl: OpenREPL) -> None:
    calls: list[ToolReport] = []
    repl = await open_repl(tools=Toolbox.of({"size": len}), on_tool=calls.append)
    result = await repl.execute(
        "try: size(**{'a' * 3_000_000: 1})\nexcept TypeError as error: print(len(str(error)))"
    )
    assert int(result.stdout) < 21_000
    name = messages.dump(["n" * 50_000, [], {}])
    await repl.execute(f"{FORGE}\nsend({(1).to_bytes(8, 'big') + name!r})\nsize('')")
    assert all(len(call.name) <= 200 and len(str(call.error)) < 21_000 for call in calls)


async def test_a_failing_listener_does_not_fail_the_call(
    open_repl: OpenREPL, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(call: ToolReport) -> None:
        raise OSError("no disk")

    repl = await open_repl(tools=Toolbox.of({"echo": echo}), on_tool=broken)
    assert (await repl.execute("echo(1), echo(2)")).stdout == "(1, 2)\n"
    assert "no disk" in caplog.text


async def test_a_call_that_fails_in_the_host_has_a_reply(
    open_repl: OpenREPL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def call(box: Toolbox, name: str, args: Any, kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Toolbox, "call", call)
    calls: list[ToolReport] = []
    repl = await open_repl(tools=Toolbox.of({"echo": echo}), on_tool=calls.append)
    result = await repl.execute("echo(1)")
    assert result.error == "MemoryError: the host could not make this call"
    assert [call.error for call in calls] == [result.error]


async def test_large_values_and_many_calls_arrive(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"echo": echo}))
    assert (
        await repl.execute(
            "v = ['é' * 5_000_000, b'x' * 10_000_000, {'é' * 100: ['y' * 100]}, {1: 'z' * 100}]\necho(v) == v"
        )
    ).stdout == "True\n"
    rows = "[{'id': n, 'text': f'row {n}', 'tags': ('a', n)} for n in range(50_000)]"
    assert (await repl.execute(f"v = {rows}\necho(v) == v")).stdout == "True\n"
    assert (await repl.execute("sum(echo(n) for n in range(500))")).stdout == f"{sum(range(500))}\n"


FORGE = f"""
import os, struct
def send(payload):
    for fd in map(int, os.listdir('/proc/self/fd')):
        try:
            if fd >= 600 and 'socket' in os.readlink(f'/proc/self/fd/{{fd}}'):
                os.write(fd, struct.pack('>cI', {FromWorker.CALL!r}, len(payload)) + payload)
        except OSError: pass
"""


@pytest.mark.parametrize(
    "call",
    [
        b'["echo", [{"z": 1}], {}]',
        b'["echo", [{"t": 5}], {}]',
        b'["echo", [{"s": [[]]}], {}]',
        b'["echo", [{"d": []}], {}]',
        b'["echo", [{"p": [[1]]}], {}]',
        b'["echo", [{"i": "zz"}], {}]',
        b'["echo", [{"b": 5}], {}]',
        b'["echo", [{"c": ["x"]}], {}]',
        b'["echo", [{"t": [], "s": []}], {}]',
        b'["echo", 5, {}]',
        b'["echo", [], []]',
        b'["echo"]',
        b"{}",
        b"5",
        b"no json \xff",
        b'["echo", [' + b"[" * 5_000 + b"]" * 5_000 + b"], {}]",
        b'["echo", [' + b'{"t":[' * 150 + b"]}" * 150 + b"], {}]",
        b'["__import__", ["os"], {}]',
        b'["system", ["true"], {}]',
    ],
    ids=range(19),
)
async def test_forged_calls_reach_no_tool(open_repl: OpenREPL, call: bytes) -> None:
    called: list[Any] = []
    repl = await open_repl(tools=Toolbox.of({"echo": called.append}))
    head = b"[" + call + b",[]]"
    payload = (1 << 40).to_bytes(8, "big") + len(head).to_bytes(4, "big") + head
    await repl.execute(f"{FORGE}\nsend({payload!r})")
    assert (await repl.execute("echo('real')")).status == "ok"
    assert called == ["real"]


async def test_endless_calls_do_not_delay_an_interrupt(open_repl: OpenREPL) -> None:
    called = 0

    async def never() -> None:
        nonlocal called
        called += 1
        await asyncio.Event().wait()

    repl = await open_repl(tools=Toolbox.of({"never": never, "echo": echo}), interrupt_grace=20.0)
    payload = (1).to_bytes(8, "big") + messages.dump(["never", [], {}])
    code = f"{FORGE}\nkept = 1\nfor _ in range(2 * {MOST_CALLS}): send({payload!r})\nnever()"
    result = await repl.execute(code, timeout=1.0)
    assert (result.status, called) == ("interrupted", MOST_CALLS)
    assert (await repl.execute("kept, echo(2)")).stdout == "(1, 2)\n"


@pytest.mark.parametrize("payload", [b"", b"short"])
async def test_a_call_that_is_no_frame_ends_the_worker_alone(open_repl: OpenREPL, payload: bytes) -> None:
    repl = await open_repl(tools=Toolbox.of({"echo": echo}))
    result = await repl.execute(f"{FORGE}\nsend({payload!r})\nwhile True: pass")
    assert result.status == "died"
    assert "disturbed" in str(result.error)
    assert (await repl.execute("echo(1)")).stdout == "1\n"


def test_the_bounds_are_those_of_the_docs() -> None:
    assert (MOST_BYTES, MOST_LEVELS) == (64 << 20, 100)
    assert (messages.MOST_TEXT, messages.MOST_HEAD) == (32 << 20, 4 << 20)
    deep: Any = 1
    for _ in range(MOST_LEVELS):
        deep = (deep,)
    assert tool_values.from_json(messages.load(messages.dump(tool_values.to_json(deep, "it")))) == deep
    with pytest.raises(ValueError, match="nested too deep"):
        tool_values.to_json([deep], "it")


_PRIME = (1 << 61) - 1


@pytest.mark.parametrize(
    "value",
    [
        {"s": [{"i": hex(number * _PRIME)} for number in range(1000)]},
        {"f": [{"i": hex(number * _PRIME)} for number in range(1000)]},
        {"p": [[{"i": hex(number * _PRIME)}, None] for number in range(1000)]},
        [{"s": [{"t": [-1 - (number >> bit & 1) for bit in range(10)]} for number in range(1000)]}],
    ],
    ids=("set", "frozenset", "dict", "tuples"),
)
def test_a_set_of_many_items_with_equal_hashes_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="have the same hash"):
        tool_values.from_json(value)


async def test_numbers_with_equal_hashes_do_not_reach_a_tool(open_repl: OpenREPL) -> None:
    repl = await open_repl(tools=Toolbox.of({"size": len}))
    result = await repl.execute(
        f"few = [number * {_PRIME} for number in range(1000)]\nsize(set(few[:100])), size(few)"
    )
    assert result.stdout == "(100, 1000)\n"
    assert "have the same hash" in str((await repl.execute("size(set(few))")).error)


async def test_the_event_loop_is_not_blocked_while_large_arguments_are_read(open_repl: OpenREPL) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    repl = await open_repl(tools=Toolbox.of({"size": len}))
    await repl.execute("rows = [(n, str(n)) for n in range(100_000)]")
    ticker = asyncio.create_task(tick())
    started = time.monotonic()
    assert (await repl.execute("size(rows)")).stdout == "100000\n"
    ticker.cancel()
    assert ticks > 10, time.monotonic() - started
