"""What can be a context, and that it keeps its identity."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import hashlib
import marshal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.context import Context
from rlm.environments.worker.contexts import read_context
from rlm.errors import ContextError

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
        Text("key"): [{Color.RED}, (Point(0, 0),)],
    }
    back = marshal.loads(b"".join(Context(value).chunks()))
    assert back == value
    assert types_of(back["point"]) == types_of((1, 2))
    assert {type(part) for part in back.values()} == {dict, int, tuple, str, bytes, list}
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
    with pytest.raises(ContextError, match="a context must be a str, bytes, list, tuple or dict") as error:
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
    ],
)
def test_parts_that_cannot_be_sent_are_named(value: Any, where: str) -> None:
    with pytest.raises(ContextError) as error:
        Context.of(value)
    assert str(error.value).startswith(where)
    assert len(str(error.value)) < 400


def test_a_context_that_contains_itself_or_is_nested_too_deep() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(ContextError, match="nested too deep, or contains itself"):
            Context(value)
    while deep:  # taken apart by hand: the interpreter would do it recursively
        deep = deep.pop()


def test_of_keeps_a_context() -> None:
    context = Context("x")
    assert Context.of(context) is context
    assert context.value == "x"
    assert repr(context) == "<Context: str of 1>"
