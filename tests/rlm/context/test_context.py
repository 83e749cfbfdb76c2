"""The values that can be a context, and how they are encoded."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import hashlib
import marshal
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.context.context import Context
from rlm.errors import ContextError
from rlm.repl.worker.process.contexts import read_context

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
keys = scalars | st.tuples(scalars, scalars) | st.frozensets(scalars, max_size=3)
values = st.recursive(
    scalars | st.frozensets(scalars, max_size=3) | st.sets(scalars, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)
contexts = (
    st.text(st.characters())
    | st.text(st.characters(categories=["Cs"]))
    | st.binary()
    | st.lists(values, max_size=5)
    | st.lists(values, max_size=5).map(tuple)
    | st.dictionaries(keys, values, max_size=5)
)


class Color(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


@dataclasses.dataclass
class Plain:
    x: int = 1


def types_of(value: Any) -> Any:
    """The shape of a value, with the exact type of every part."""
    if isinstance(value, dict):
        return dict, [(types_of(key), types_of(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_of(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(types_of, value)))
    return type(value)


@given(contexts)
@settings(max_examples=80, deadline=None)
def test_every_plain_value_is_read_back_equal(value: Any) -> None:
    context = Context(value)
    back = read_context(context.kind, context.file())
    assert back == value
    assert types_of(back) == types_of(value)
    assert context.kind == type(value).__name__
    assert context.size == len(value)
    assert context.encoded_size == sum(map(len, context.chunks()))


@given(contexts)
@settings(max_examples=20, deadline=None)
def test_the_digest_is_that_of_the_encoded_form(value: Any) -> None:
    context = Context(value)
    assert context.sha256 == hashlib.sha256(b"".join(context.chunks())).hexdigest()
    assert context.describe() == {"kind": context.kind, "size": context.size, "sha256": context.sha256}


def test_the_digest_of_a_str_is_that_of_its_text() -> None:
    text = "é" * 3_000_000
    assert Context(text).sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_the_same_in_every_process() -> None:
    code = (
        "from rlm.context import Context; "
        "print(Context([{'a', 'b', 'c', 'dd'}, {'x': frozenset({'1', '2', '3'})}, 'text'] + ['text']).sha256)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path.cwd())},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(digests) == 1


def test_instances_of_subclasses_become_the_plain_value_that_they_equal() -> None:
    value = {
        "counter": collections.Counter("aab"),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, a=[1]),
        "enum": Color.RED,
        "point": Point(1, 2),
        "text": Text("x"),
        "bytearray": bytearray(b"x"),
        "numpy": [np.int64(5), np.bool_(True)],
        Text("key"): [{Color.RED}, (Point(0, 0),)],
    }
    back = marshal.loads(b"".join(Context(value).chunks()))
    assert back == value
    assert types_of(back["point"]) == types_of((1, 2))
    assert {type(part) for part in back.values()} == {dict, int, tuple, str, bytes, list}
    assert types_of(back["numpy"]) == types_of([5, True])
    assert Context(bytearray(b"abc")).kind == "bytes"
    assert Context(Point(1, 2)).kind == "tuple"


def test_later_changes_of_the_value_do_not_show() -> None:
    value = [[1]]
    context = Context(value)
    digest = context.sha256
    value[0].append(2)
    assert marshal.loads(b"".join(context.chunks())) == [[1]]
    assert context.sha256 == digest


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (None, "this is None; pass the input itself"),
        ({1, 2}, "this is a set; pass list"),
        (frozenset(), "this is a frozenset; pass list"),
        (range(3), "this is a range; pass list"),
        ((x for x in "ab"), "this is a generator; pass list"),
        (5, "this is an int; pass a str"),
        (2.5, "this is a float; pass a str"),
        (object(), "this is an object; pass a str"),
        (Plain(), "this is a Plain; pass a str"),
        (print, "functions and classes cannot be sent"),
        (Plain, "functions and classes cannot be sent"),
    ],
)
def test_other_types_are_refused_with_what_to_do(value: Any, advice: str) -> None:
    with pytest.raises(
        ContextError, match="a context must be a str, bytes, list, tuple or dict, a file's path"
    ) as error:
        Context.of(value)
    assert advice in str(error.value)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([1, [2, print]], "context[1][1] is a builtin_function_or_method"),
        ({"rows": [{"when": datetime.date(2020, 1, 1)}]}, "context['rows'][0]['when'] is a date"),
        (({"a": object()},), "context[0]['a'] is an object"),
        ({"a": Plain()}, "context['a'] is a Plain"),
        ([(x for x in "ab")], "context[0] is a generator: "),
        ({Plain: 1}, "a key of context is a type"),
        ({("k", print): 1}, "a key of context[1] is a builtin_function_or_method"),
        ({"k" * 500: print}, "context['kkk"),
        ([memoryview(b"x")], "context[0] is a memoryview"),
        ([np.longdouble(1)], "context[0] is a longdouble"),
        ([np.arange(3)], "context[0] is a ndarray"),
    ],
)
def test_the_error_names_the_part_that_cannot_be_sent(value: Any, where: str) -> None:
    with pytest.raises(ContextError) as error:
        Context.of(value)
    assert str(error.value).startswith(where)
    assert len(str(error.value)) < 400


def test_a_value_that_contains_itself_or_is_nested_too_deep_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(ContextError, match="nested too deep, or contains itself"):
            Context(value)
    while deep:  # taken apart here: the interpreter would recurse too deep
        deep = deep.pop()


def test_of_returns_a_context_itself() -> None:
    context = Context("x")
    assert Context.of(context) is context
    assert context.value == "x"
    assert repr(context) == "<Context: str of 1>"


def test_a_text_file_becomes_a_str(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    text = "é\r\n\0 \U0001f600\n" * 300_000
    file.write_bytes(text.encode())
    context = Context.of(file)
    file.write_text("changed")
    assert (context.kind, context.size, context.unit) == ("str", len(text), "characters")
    assert context.value == text
    assert read_context(context.kind, context.file()) == text
    assert context.sha256 == Context(text).sha256
    assert context.encoded_size == len(text.encode()) == sum(map(len, context.chunks()))
    assert context.summary == f"the file notes.txt: a str of {len(text):,} characters"


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x89PNG" + bytes(3_000_000), b"cut \xc3"])
def test_a_file_that_is_not_utf8_becomes_bytes(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(data)
    context = Context(file)
    assert (context.kind, context.size, context.unit) == ("bytes", len(data), "bytes")
    assert context.value == data == read_context("bytes", context.file())
    assert context.summary == f"the file image.png: a bytes of {len(data):,} bytes"


def test_characters_across_the_chunks_of_a_file_are_counted_once(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    text = "x" + "é中\U0001f600" * 500_000
    file.write_text(text)
    context = Context(file)
    assert (context.kind, context.size) == ("str", len(text))


def test_an_empty_file_becomes_an_empty_str(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()
    context = Context(file)
    assert (context.kind, context.size, context.value) == ("str", 0, "")
    assert read_context("str", context.file()) == ""


def test_lists_and_dicts_of_files_are_read(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.bin"
    one.write_text("é")
    two.write_bytes(b"\xff")
    listed = Context([one, two])
    assert listed.value == [{"path": str(one), "text": "é"}, {"path": str(two), "data": b"\xff"}]
    assert (listed.kind, listed.summary) == ("list", "a list of 2 items")
    assert read_context("list", listed.file()) == listed.value
    assert Context((one,)).value == [{"path": str(one), "text": "é"}]
    assert Context({"a": one, 2: two}).value == {"a": "é", 2: b"\xff"}


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    missing = tmp_path / "missing.txt"
    for value, problem in [
        (missing, f"there is no file {missing}"),
        ([missing], f"there is no file {missing}"),
        (tmp_path, f"{tmp_path} is a folder: pass the files in it"),
        ({"a": tmp_path}, f"{tmp_path} is a folder"),
        (pipe, f"{pipe} is not a regular file"),
        (Path("/dev/zero"), "/dev/zero is not a regular file"),
        ([missing, "text"], "context[0] is a PosixPath"),
        ({"a": missing, "b": 1}, "context['a'] is a PosixPath"),
    ]:
        with pytest.raises(ContextError) as error:
            Context(value)
        assert str(error.value).startswith(problem)


class LangChainDocument:
    def __init__(self, text: str, **metadata: Any) -> None:
        self.page_content, self.metadata = text, metadata


@dataclasses.dataclass
class LlamaNode:
    text: str
    metadata: dict[str, Any]


@dataclasses.dataclass
class HaystackDocument:
    content: str
    meta: dict[str, Any]


def test_documents_of_libraries_become_dicts() -> None:
    documents = [LangChainDocument("a", source="x"), LlamaNode("b", {"page": 1}), HaystackDocument("c", {})]
    expected = [
        {"text": "a", "metadata": {"source": "x"}},
        {"text": "b", "metadata": {"page": 1}},
        {"text": "c", "metadata": {}},
    ]
    assert marshal.loads(b"".join(Context(documents).chunks())) == expected
    assert marshal.loads(b"".join(Context({"q": documents, "n": 1}).chunks())) == {"q": expected, "n": 1}
    alone = Context(LlamaNode("b", {"page": 1}))
    assert (alone.kind, alone.value) == ("dict", expected[1])
    with pytest.raises(
        ContextError, match=r"context\[1\]\['metadata'\]\['when'\] is a date: .*its isoformat"
    ):
        Context([documents[0], LlamaNode("b", {"when": datetime.date(2020, 1, 1)})])
    with pytest.raises(ContextError, match=r"context\[0\] is a type"):
        Context([LlamaNode])
    with pytest.raises(ContextError, match=r"context\[0\] is a LlamaNode"):
        Context([LlamaNode(5, {})])  # type: ignore[arg-type]


def frames() -> list[Any]:
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None])
    frame = pd.DataFrame(
        {
            "int": [1, 2],
            "float": [1.5, None],
            "str": ["é", None],
            "object": [(1, "x"), {"k": [1]}],
            "when": pd.to_datetime(["2020-01-01", None]),
            "zone": pd.to_datetime(["2020-01-01", "2021-01-01"]).tz_localize("UTC"),
            "kind": pd.Categorical(["p", "q"]),
            "maybe": pd.array([1, None], dtype="Int64"),
            5: [True, False],
        },
        index=index,
    )
    return [frame, frame["str"], frame["int"], frame[:0], pd.DataFrame(), pd.Series([], dtype=float)]


@pytest.mark.parametrize("number", range(6))
def test_tables_of_pandas_are_encoded(number: int) -> None:
    value = frames()[number]
    context = Context(value)
    back = read_context(context.kind, context.file())
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(back, value)
        assert context.kind == "dataframe"
    else:
        pd.testing.assert_series_equal(back, value)
        assert context.kind == "series"
    assert (context.size, context.unit) == (len(value), "rows")
    assert context.value is value
    assert context.encoded_size == sum(map(len, context.chunks()))
    assert context.sha256 == Context(frames()[number].copy()).sha256
    assert context.describe() == {"kind": context.kind, "size": context.size, "sha256": context.sha256}


def test_different_tables_have_different_digests() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    others = [
        frame,
        frame.rename(columns={"a": "c"}),
        frame.astype({"a": "int32"}),
        frame.assign(a=[1, 3]),
        frame.assign(b=["x", "z"]),
        frame[["b", "a"]],
        frame.set_index([[5, 6]]),
        frame.rename_axis("n"),
        frame["a"],
        frame["b"],
        pa.table({"a": [1, 2], "b": ["x", "y"]}),
        pa.table({"a": [1, 2], "b": ["x", None]}),
        pa.table({"a": pa.array([1, 2], pa.int8()), "b": ["x", "y"]}),
        pa.table({"b": ["x", "y"], "a": [1, 2]}),
    ]
    assert len({Context(other).sha256 for other in others}) == len(others)


def test_tables_of_arrow_are_encoded() -> None:
    table = pa.table(
        {
            "a": pa.chunked_array([[1, None], [3]]),
            "b": ["x", "é", None],
            "c": [[1], None, []],
            "d": [{"k": b"v"}, None, {"k": None}],
            "e": pa.array(["p", "q", "p"]).dictionary_encode(),
        }
    ).replace_schema_metadata({"made": "here"})
    context = Context(table)
    back = read_context("table", context.file())
    assert back.equals(table, check_metadata=True)
    assert (context.kind, context.size, context.unit) == ("table", 3, "rows")
    assert context.sha256 == Context(table.slice(0)).sha256
    assert Context(table.slice(1)).sha256 == Context(table[1:]).sha256 != context.sha256


def test_later_changes_of_a_table_do_not_show() -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    context, same = Context(frame), Context(frame.copy())
    frame.loc[0, "a"] = 9
    assert context.sha256 == same.sha256
    assert read_context("dataframe", context.file())["a"].tolist() == [1, 2]


def test_a_table_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(
        ContextError, match=r"the pandas DataFrame holds something that cannot be sent: .*lambda"
    ):
        Context(pd.DataFrame({"a": [lambda: 1]}))


@pytest.mark.parametrize(
    ("value", "summary"),
    [
        ("", "a str of 0 characters"),
        ("x", "a str of 1 character"),
        ("x" * 1234, "a str of 1,234 characters"),
        (b"xy", "a bytes of 2 bytes"),
        ([1], "a list of 1 item"),
        ((1, 2), "a tuple of 2 items"),
        ({}, "a dict of 0 items"),
        (
            pd.DataFrame({"a": [1] * 1000, "b": [0.5] * 1000, 7: [True] * 1000}),
            "a pandas DataFrame of 1,000 rows x 3 columns: a (int64), b (float64), 7 (bool)",
        ),
        (pd.DataFrame(), "a pandas DataFrame of 0 rows x 0 columns"),
        (pd.Series([1.5]), "a pandas Series of 1 row (float64)"),
        (pa.table({"a": [1], "b": ["x"]}), "a pyarrow Table of 1 row x 2 columns: a (int64), b (string)"),
    ],
)
def test_a_context_is_summarised_in_one_line(value: Any, summary: str) -> None:
    assert Context(value).summary == summary


def test_the_summary_of_a_wide_table_is_cut() -> None:
    summary = Context(pd.DataFrame([[0] * 500], columns=["c" * 500 + str(n) for n in range(500)])).summary
    assert len(summary) < 3_000
    assert summary.endswith(", ...")


def test_libraries_of_tables_are_not_imported_for_other_values() -> None:
    code = (
        "import sys; from rlm.context import Context; Context([{'a': 1}]); Context('x'); "
        "print([name for name in ('pandas', 'pyarrow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout == "[]\n"
