"""Cells are ordinary Python: what they print, raise and keep."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from rlm.environments import REPL, CellResult

Run = Callable[[str], Awaitable[CellResult]]

WORKER_CODE = "repl/worker/"
"""In the file name of each frame of the worker's own code."""


async def check(run: Run, *cells: str, expect: str) -> CellResult:
    """Runs cells, all of which must end well, and compares what the last one printed."""
    for cell in cells:
        result = await run(cell)
        assert (result.status, result.error) == ("ok", None), result.stderr
    assert result.stdout == expect
    return result


@pytest.mark.parametrize(
    ("cells", "expect"),
    [
        (["class A:\n    def f(self): return 1", "print(A().f())"], "1\n"),
        (["class A: pass\nclass B(A): pass", "issubclass(B, A), B.__module__"], "(True, '__main__')\n"),
        (["x = 1\ndef f(): return x", "x = 2", "f()"], "2\n"),
        (["x = 1\ndef f():\n    global x\n    x = 5\nf()", "x"], "5\n"),
        (["def outer():\n    n = [0]\n    def inner():\n        n[0] += 1\n        return n[0]\n    return inner",
          "count = outer()\ncount()", "count()"], "2\n"),
        (["_hidden = 3\n__very = 4", "_hidden + __very"], "7\n"),
        (["x = 1", "del x", "'x' in globals()"], "False\n"),
        (["frozenset([1]), issubclass(ZeroDivisionError, ArithmeticError), hash, open, eval, exec, compile",
          "eval('1 + 1')"], "2\n"),
        (["exec('y = 3')", "y"], "3\n"),
        (["[i for i in range(3) if (last := i) >= 0]", "last"], "2\n"),
        (["from dataclasses import dataclass, field",
          "@dataclass\nclass P:\n    x: int\n    y: list[int] = field(default_factory=list)\nP(1)"], "P(x=1, y=[])\n"),
        (["import pickle\nclass P:\n    def __eq__(self, other): return type(other) is P",
          "pickle.loads(pickle.dumps(P())) == P()"], "True\n"),
        (["import typing\nclass T(typing.NamedTuple):\n    a: 'T | None'", "typing.get_type_hints(T)['a']"],
         "__main__.T | None\n"),
        (["from __future__ import annotations", "def f(x: Undefined): pass\nf.__annotations__"], "{'x': 'Undefined'}\n"),
        (["x: int = 3", "__annotations__"], "{'x': <class 'int'>}\n"),
        (["import enum\nclass Color(enum.Enum):\n    RED = 1", "Color.RED"], "<Color.RED: 1>\n"),
        (["if __name__ == '__main__':\n    print('main')"], "main\n"),
        (["import sys", "sys.argv, sys.modules['__main__'].__dict__ is globals()"], "([''], True)\n"),
        (["import asyncio\nasync def f(): return 3", "asyncio.run(f())"], "3\n"),
        (["import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 4", "await f()"], "4\n"),
        (["import asyncio\nasync with asyncio.timeout(5):\n    x = await asyncio.sleep(0, 'slept')\nx"], "'slept'\n"),
        (["import inspect\ndef f():\n    return 'source'", "print(inspect.getsource(f).rstrip())"],
         "def f():\n    return 'source'\n"),
        (["import subprocess, sys\nargs = [sys.executable, '-c', 'print(6 * 7)']",
          "subprocess.run(args, text=True, capture_output=True).stdout"], "'42\\n'\n"),
        (["import multiprocessing as mp\ndef square(x): return x * x",
          "with mp.get_context('fork').Pool(2) as pool: print(pool.map(square, range(4)))"], "[0, 1, 4, 9]\n"),
        (["from concurrent.futures import ThreadPoolExecutor",
          "with ThreadPoolExecutor(8) as pool: print(sum(pool.map(len, ['ab'] * 100)))"], "200\n"),
        (["import sys\nsys.setrecursionlimit(5000)\ndef f(n): return n and f(n - 1)", "f(3000)"], "0\n"),
        (["print('tail', end='')\n1"], "tail\n1\n"),
        (["1", "_ + 1"], "2\n"),
        (["None"], ""),
        ([""], ""),
        (["# only a comment"], ""),
        (["x = 1;"], ""),
        (["print('\u00e9\u4e2d\U0001f600')"], "\u00e9\u4e2d\U0001f600\n"),
        (["print('\\udc80')"], "\\udc80\n"),
        (["x = 'a\\r\\nb'\r\nlen(x)\r\n"], "4\n"),
    ],
)  # fmt: skip
async def test_a_cell_is_ordinary_python(run: Run, cells: list[str], expect: str) -> None:
    await check(run, *cells, expect=expect)


async def test_names_assigned_before_an_exception_stay(run: Run) -> None:
    failed = await run("x = [1]\nx.append(2)\nraise KeyError('gone')\nx.append(3)")
    assert (failed.status, failed.error) == ("error", "KeyError: 'gone'")
    await check(run, "x", expect="[1, 2]\n")


async def test_a_traceback_shows_cell_line_and_source_and_no_frame_of_the_worker(run: Run) -> None:
    await run("def divide(a, b):\n    return a / b")
    result = await run("print('before')\nvalue = divide(1, 0)")
    assert result.stdout == "before\n"
    assert result.error == "ZeroDivisionError: division by zero"
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert '  File "<cell 2>", line 2, in <module>' in lines
    assert "    value = divide(1, 0)" in lines
    assert '  File "<cell 1>", line 2, in divide' in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert WORKER_CODE not in result.stderr


async def test_chained_and_grouped_exceptions_are_shown_without_frames_of_the_worker(run: Run) -> None:
    result = await run(
        "try:\n    llm_query_batched('text')\nexcept TypeError as error:\n"
        "    raise ExceptionGroup('several', [ValueError(1), KeyError(2)]) from error"
    )
    assert "TypeError: prompts must be a list" in result.stderr
    assert "direct cause" in result.stderr
    assert "ValueError: 1" in result.stderr
    assert WORKER_CODE not in result.stderr


@pytest.mark.parametrize(
    ("code", "error", "shown"),
    [
        ("x = (1,\ny = 2", "SyntaxError", "x = (1,"),
        ("def f():\nreturn 1", "IndentationError", "return 1"),
        ("x = 'a\0b'", "SyntaxError", ""),
        ("return 5", "SyntaxError", "return 5"),
        ("x = " + "(" * 500 + ")" * 500, "SyntaxError", "too many nested"),
        ("'\udc80'", "UnicodeEncodeError", "surrogates not allowed"),
    ],
)
async def test_a_syntax_error_is_shown_and_the_next_cell_runs(
    run: Run, code: str, error: str, shown: str
) -> None:
    result = await run(code)
    assert result.status == "error"
    assert result.error is not None
    assert result.error.startswith((error, "ValueError: source code string"))
    assert shown in result.stderr
    assert WORKER_CODE not in result.stderr
    assert (await run("1 + 1")).stdout == "2\n"


@pytest.mark.parametrize(
    ("code", "error", "stderr"),
    [
        ("import sys; sys.exit()", "SystemExit", ""),
        ("import sys; sys.exit(3)", "SystemExit: 3", ""),
        ("import sys; sys.exit('bye')", "SystemExit: bye", "bye\n"),
        ("exit()", "SystemExit", ""),
        ("quit(2)", "SystemExit: 2", ""),
        ("raise SystemExit", "SystemExit", ""),
    ],
)
async def test_exit_ends_the_cell_and_not_the_session(run: Run, code: str, error: str, stderr: str) -> None:
    await run("kept = 1")
    result = await run(code)
    assert (result.status, result.error, result.stderr) == ("exit", error, stderr)
    await check(run, "print(kept)", expect="1\n")


async def test_stdin_is_empty(run: Run) -> None:
    assert (await run("input('name? ')")).error == "EOFError: EOF when reading a line"
    await check(run, "import sys, os\nsys.stdin.read(), os.read(0, 10)", expect="('', b'')\n")


async def test_exceptions_without_a_usable_text_are_reported(run: Run) -> None:
    result = await run("class Bad(Exception):\n    def __str__(self): raise ValueError\nraise Bad")
    assert result.error == "Bad: <its text could not be had>"
    assert "Bad" in result.stderr
    huge = await run("raise ValueError('x' * 10_000_000)")
    assert huge.error is not None
    assert len(huge.error) < 400
    assert len(huge.stderr) < 30_000
    long = await run("raise type('A' * 3_000_000, (Exception,), {})('x')")
    assert long.error == f"{'A' * 77}...: x"
    exits = await run("class Odd(Exception):\n    def __str__(self): import sys; sys.exit(1)\nraise Odd")
    assert exits.status == "error"


async def test_a_last_value_may_have_a_failing_or_a_huge_repr(run: Run) -> None:
    bad = await run("class Bad:\n    def __repr__(self): raise ValueError('no repr')\nBad()")
    assert bad.error == "ValueError: no repr"
    large = await run("'x' * 5_000_000")
    assert large.status == "ok"
    assert len(large.stdout) < 21_000


async def test_reserved_names_are_restored_after_a_cell(run: Run) -> None:
    await run("context = llm_query = SHOW_VARS = history = 0\ndel context_0, rlm_query, answer, SubcallError")
    await check(
        run,
        "print(context, context_0, llm_query('x'), rlm_query('y'), history, answer, SubcallError.__name__)",
        expect="the context the context llm:x rlm:y [] {'content': '', 'ready': False} SubcallError\n",
    )


async def test_a_cell_sees_a_reserved_name_that_it_rebinds(run: Run) -> None:
    await check(run, "context = context.upper()\ncontext", expect="'THE CONTEXT'\n")


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout = sys.stderr = None",
        "import sys, io; sys.stdout = io.StringIO(); print('swallowed')",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import sys; sys.stdin = None",
        "import os; os.close(0); os.close(1); os.close(2)",
        "import os; os.closerange(0, 256)",
        "import os; os.chdir('/')",
        "import sys; sys.setrecursionlimit(60)",
        "import sys; sys.settrace(lambda *a: 1 / 0)",
        "import sys; sys.setprofile(lambda *a: None)",
        "import sys; sys.displayhook = sys.excepthook = None",
        "import sys; sys.modules.clear()",
        "import sys; del sys.modules['__main__']",
        "import builtins; builtins.print = builtins.repr = builtins.len = builtins.isinstance = None",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import linecache; linecache.cache.clear()",
        "import gc; gc.disable(); gc.set_threshold(1)",
        "import json; json.dumps = json.loads = None",
        "import os; os.read = os.write = os.dup2 = None",
        "import threading; threading.Thread(target=lambda: 1 / 0).start()",
        "globals().clear()",
        "import locale; locale.setlocale(locale.LC_ALL, 'C')",
        "import os; os.environ.clear()",
        "import os; os.umask(0o777)",
        "import atexit; atexit.register(lambda: 1 / 0)",
        "import warnings; warnings.simplefilter('error')",
        "import os; os.setuid(65534)",
        "import os; os.nice(5)",
    ],
)
async def test_no_cell_breaks_the_next(repl: REPL, code: str) -> None:
    await repl.execute(code)
    # Some of these end the worker. If the next cell is lost with it, the one after that runs.
    result = await repl.execute("print(context)\n1 / 0")
    if result.status == "died":
        result = await repl.execute("print(context)\n1 / 0")
    assert result.stdout == "the context\n"
    assert result.error == "ZeroDivisionError: division by zero"
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


async def test_an_interrupt_works_after_the_handler_was_replaced(repl: REPL) -> None:
    await repl.execute("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); x = 1")
    assert (await repl.execute("while True: pass", timeout=0.1)).status == "interrupted"
    assert (await repl.execute("x")).stdout == "1\n"


async def test_a_forked_child_cannot_query_and_ends_with_the_cell(run: Run) -> None:
    result = await run(
        "import os\npid = os.fork()\n"
        "if pid:\n    _, status = os.waitpid(pid, 0)\n    print('child exited with', os.waitstatus_to_exitcode(status))\n"
        "else:\n"
        "    try: llm_query('x')\n    except RuntimeError as error: print('child:', error, flush=True)\n"
        "    raise SystemExit(7)"
    )
    assert result.status == "ok"
    assert "child: sub-models and tools can be asked from the REPL's own process only" in result.stdout
    assert result.stdout.endswith("child exited with 7\n")
    failing = await run(
        "pid = os.fork()\nif pid == 0: 1 / 0\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])"
    )
    assert failing.stdout == "1\n"
    assert failing.stderr.endswith("ZeroDivisionError: division by zero\n")
    await check(run, "llm_query('again')", expect="'llm:again'\n")


async def test_locals_describe_values_without_running_their_code(run: Run) -> None:
    result = await run(
        "import re\nnumbers = list(range(12)); text = 'x' * 4096; pair = (1, 2); table = {'a': 1}\n"
        "n = 3; x = 0.5; yes = True; nothing = None; raw = b'abc'; big = 1 << 200\n"
        "class Evil(dict):\n    def __len__(self): raise ValueError\n    def __repr__(self): raise ValueError\n"
        "    def __getattribute__(self, name):\n        while True: pass\n"
        "evil = Evil()\ndef f(): pass\n_private = {1, 2}"
    )
    assert result.locals == {
        "re": "module",
        "numbers": "list of 12",
        "text": "str of 4,096 characters",
        "pair": "tuple of 2",
        "table": "dict of 1",
        "n": "int 3",
        "x": "float 0.5",
        "yes": "True",
        "nothing": "None",
        "raw": "bytes of 3 bytes",
        "big": "int",
        "Evil": "class Evil",
        "evil": "Evil of 0",
        "f": "function",
        "_private": "set of 2",
    }
    shown = await run("SHOW_VARS()")
    assert shown.stdout == (await run("print(SHOW_VARS())")).stdout
    assert "numbers: list of 12\n" in shown.stdout


async def test_the_number_of_locals_is_bounded(run: Run) -> None:
    result = await run("for i in range(5000): globals()[f'name_{i}'] = i")
    assert len(result.locals) < 400
    assert result.locals["name_0"] == "int 0"


async def test_the_same_seed_gives_the_same_output(open_repl: Callable[..., Awaitable[REPL]]) -> None:
    code = "import random; print(hash('text'), list({'a', 'b', 'c', 'd'}), random.random())"
    first, second = await open_repl("x", seed=7), await open_repl("x", seed=7)
    assert (await first.execute(code)).stdout == (await second.execute(code)).stdout
    numpy = "import numpy; print(numpy.random.rand())"
    one = await first.execute(numpy)
    assert one.status == "ok", one.stderr
    assert one.stdout == (await second.execute(numpy)).stdout


async def test_warnings_are_shown_with_their_line(run: Run) -> None:
    result = await run("import warnings\nwarnings.warn('careful')")
    assert result.status == "ok"
    assert "<cell 1>:2: UserWarning: careful" in result.stderr


async def test_a_worker_has_a_folder_of_its_own(run: Run) -> None:
    result = await run(
        "import os, tempfile, pathlib\nopen('note.txt', 'w').write('x')\n"
        "folder = os.getcwd()\n"
        "print(folder == tempfile.gettempdir() == str(pathlib.Path.home()), os.listdir())"
    )
    assert result.stdout == "True ['note.txt']\n"


async def test_a_replaced_stdin_lasts_until_the_end_of_its_cell(run: Run) -> None:
    await check(
        run, "import io, sys\nsys.stdin = io.TextIOWrapper(io.BytesIO(b'typed'))\ninput()", expect="'typed'\n"
    )
    assert (await run("input()")).error == "EOFError: EOF when reading a line"
