"""Tables, files and documents, as the code finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from rlm.context import Context
from rlm.environments import REPL, Query, QueryReply, SessionSpec
from rlm.environments.program import ProgramEnvironment
from rlm.errors import REPLError

from .conftest import WORKER_COMMAND

OpenREPL = Callable[..., Awaitable[REPL]]


class Unknown:
    """An object of a module that the worker cannot import."""

    def __reduce__(self) -> Any:
        return Unknown, ()


async def no_queries(query: Query) -> list[QueryReply]:
    raise AssertionError


async def test_tables_arrive_as_tables(open_repl: OpenREPL) -> None:
    frame = pd.DataFrame({"a": [1, None], "b": ["é", None], "c": [{"k": 1}, (1,)]}, index=["x", "y"])
    table = pa.table({"a": [1, None], "b": ["é", None]})
    repl = await open_repl(frame, frame["a"], table)
    result = await repl.execute(
        "print(type(context_0).__name__, context_0.index.tolist(), context_0['c'].tolist(), context_0['b'].tolist())\n"
        "print(type(context_1).__name__, context_1.name, context_1.dtype, context_1.iloc[0])\n"
        "print(type(context).__name__, context.to_pylist())"
    )
    assert result.stdout.splitlines() == [
        "DataFrame ['x', 'y'] [{'k': 1}, (1,)] ['é', nan]",
        "Series a float64 1.0",
        "Table [{'a': 1, 'b': 'é'}, {'a': None, 'b': None}]",
    ]


async def test_each_repl_has_its_own_copy_of_a_table(open_repl: OpenREPL) -> None:
    context = Context(pd.DataFrame({"a": [1, 2]}))
    one, other = await open_repl(context), await open_repl(context)
    await one.execute("context.loc[0, 'a'] = 9")
    assert (await one.execute("context['a'].tolist()")).stdout == "[9, 2]\n"
    assert (await other.execute("context['a'].tolist()")).stdout == "[1, 2]\n"


async def test_the_error_names_the_library_that_is_missing(tmp_path: Path) -> None:
    for value, library in (
        (pd.DataFrame({"a": [1]}), "pandas"),
        (pd.Series([1]), "pandas"),
        (pa.table({"a": [1]}), "pyarrow"),
    ):
        with pytest.raises(REPLError, match=rf"a table of {library}, and .* No module named '"):
            await ProgramEnvironment(command=WORKER_COMMAND).open(
                SessionSpec(contexts=[Context(value)]), no_queries
            )


async def test_an_extension_by_a_table_fails_whole_where_its_library_is_missing(tmp_path: Path) -> None:
    session = await ProgramEnvironment(command=WORKER_COMMAND).open(
        SessionSpec(contexts=[Context("first")]), no_queries
    )
    try:
        with pytest.raises(REPLError, match="a table of pandas, and the REPL cannot import what it needs"):
            await session.extend([Context("fits"), Context(pd.DataFrame({"a": [1]}))])
        assert (await session.execute("context, 'context_1' in globals()")).stdout == "('first', False)\n"
    finally:
        await session.close()


async def test_a_table_with_objects_that_the_worker_cannot_import_is_refused(open_repl: OpenREPL) -> None:
    with pytest.raises(REPLError, match="a table of pandas, and the REPL cannot import what it needs"):
        await open_repl(pd.DataFrame({"a": [Unknown()]}))


async def test_a_table_larger_than_the_memory_limit_is_refused(open_repl: OpenREPL) -> None:
    frame = pd.DataFrame({"a": range(40_000_000)})
    with pytest.raises(REPLError, match="do not fit in the memory of a REPL, 250,000,000 bytes"):
        await open_repl(frame, limits={"memory_bytes": 250_000_000})


@dataclasses.dataclass
class Document:
    page_content: str
    metadata: dict[str, Any]


async def test_files_and_documents_arrive_as_plain_values(open_repl: OpenREPL, tmp_path: Path) -> None:
    text, data = tmp_path / "a.txt", tmp_path / "b.bin"
    text.write_bytes(b"one\r\n\xc3\xa9")
    data.write_bytes(b"\xff")
    repl = await open_repl(text, data, [text, data], {"x": text}, [Document("d", {"n": 1})])
    result = await repl.execute("context_0, context_1, [d.keys() for d in context_2], context_3, context")
    assert result.stdout == (
        "('one\\r\\né', b'\\xff', [dict_keys(['path', 'text']), dict_keys(['path', 'data'])], {'x': 'one\\r\\né'}, "
        "[{'text': 'd', 'metadata': {'n': 1}}])\n"
    )
