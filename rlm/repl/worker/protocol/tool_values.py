"""Arguments and results of tools: plain values as JSON and back, with their exact types. Decoding runs no code of the sender
and imports nothing, so the host can decode whatever a worker sends."""

from __future__ import annotations

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_BYTES = 64 << 20
"""Bytes that the encoded result of a tool may have. Arguments have the limits of `messages`."""

MOST_LEVELS = 100
"""Levels to which a value may be nested."""

_MOST_EQUAL_HASHES = 100
"""Items of a set, or keys of a dict, that may have the same hash. The sender can choose the hashes of numbers and tuples, and a
set of n items with one hash takes n * n comparisons."""

_SMALL = 1 << 63
"""Ints outside of +-2**63 are sent as hexadecimal text: Python limits the digits of decimal numbers that it parses."""
_SEQUENCES: tuple[tuple[Any, str], ...] = ((tuple, "t"), (set, "s"), (frozenset, "f"))
_SETS: dict[str, Callable[[Any], Any]] = {"s": set, "f": frozenset}


class _UnfitError(Exception):
    """A part of a value cannot be sent. `steps` is the path to it, from the inside out: each level adds its own."""

    def __init__(self, kind: type[Exception], problem: str) -> None:
        self.kind, self.problem = kind, problem
        self.steps: list[str] = []


def to_json(value: Any, where: str) -> Any:
    """Encodes a plain value.

    Args:
        value: a str, bytes, int, float, complex, bool or None, or a list, tuple, dict, set or frozenset of these. An
            instance of a subclass, or a numpy number, becomes the plain value that it equals.
        where: what errors call the value.

    Raises:
        TypeError: the value holds something else. The text says where.
        ValueError: the value is nested too deep, or contains itself.
    """
    try:
        return _to_json(value, MOST_LEVELS)
    except _UnfitError as error:
        path = "".join(reversed(error.steps))
        raise error.kind(
            f"{where}{path if len(path) <= 200 else path[:200] + '...'} {error.problem}"
        ) from None


def _to_json(value: Any, levels: int) -> Any:
    kind = type(value)
    if kind is str or kind is float or kind is bool or value is None:
        return value
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -_SMALL <= number < _SMALL else {"i": hex(number)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (bytes, bytearray)):
        return {"b": binascii.b2a_base64(value, newline=False).decode()}
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        number = value.item()  # a numpy number whose type is no subclass of a Python type
        if type(number) is not kind:  # a long double has no Python type: its item() is itself
            return _to_json(number, levels)
    if not levels:
        raise _UnfitError(
            ValueError, f"is nested too deep (more than {MOST_LEVELS} levels), or contains itself"
        )
    if isinstance(value, list):
        return _items(value, levels - 1)
    if isinstance(value, dict):
        return _dict(value, levels - 1)
    for base, tag in _SEQUENCES:
        if isinstance(value, base):
            return {tag: _items(value, levels - 1)}
    raise _UnfitError(
        TypeError,
        f"is of type {kind.__name__}: tools take str, bytes, int, float, complex, bool, None, and lists, tuples, "
        "dicts and sets of them",
    )


def _items(value: Any, levels: int) -> list[Any]:
    done: list[Any] = []
    try:
        for item in value:
            done.append(_to_json(item, levels))  # noqa: PERF401 (an error needs its length)
    except _UnfitError as error:
        error.steps.append(f"[{len(done)}]")
        raise
    return done


def _dict(value: dict[Any, Any], levels: int) -> Any:
    key: Any = None
    step = ""
    try:
        if all(type(key) is str for key in value):
            tagged = {}
            for key, item in dict.items(value):
                tagged[key] = _to_json(item, levels)
            return {"d": tagged}
        pairs = []
        for key, item in dict.items(value):
            step = "[a key]"
            first = _to_json(key, levels)
            step = ""
            pairs.append([first, _to_json(item, levels)])
        return {"p": pairs}
    except _UnfitError as error:
        error.steps.append(step or f"[{_short(key)}]")
        raise


def _short(key: Any) -> str:
    text = repr(key) if type(key) in (str, int, float, bool) else type(key).__name__
    return text if len(text) <= 40 else text[:37] + "..."


def from_json(data: Any) -> Any:
    """Decodes what `to_json` encoded.

    Raises:
        ValueError: `data` is no encoded value, or many items of a set or dict in it have the same hash.
    """
    try:
        return _from_json(data, MOST_LEVELS)
    except (TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"this is no encoded value: {error}") from error


def _from_json(data: Any, levels: int) -> Any:
    kind = type(data)
    if kind is not list and kind is not dict:
        return data
    if levels < 0:
        raise ValueError("the value is nested too deep")
    if kind is list:
        return [_from_json(item, levels - 1) for item in data]
    if len(data) != 1:
        raise ValueError(f"an encoded value has {len(data)} tags in place of one")
    ((tag, content),) = data.items()
    if tag == "t":
        return tuple([_from_json(item, levels - 1) for item in content])
    if tag in _SETS:
        return _SETS[tag](_with_few_equal_hashes([_from_json(item, levels - 1) for item in content]))
    if tag == "d":
        return {key: _from_json(item, levels - 1) for key, item in content.items()}
    if tag == "p":
        pairs = [(_from_json(key, levels - 1), _from_json(item, levels - 1)) for key, item in content]
        _with_few_equal_hashes([key for key, _ in pairs])
        return dict(pairs)
    if tag == "b":
        return binascii.a2b_base64(content)
    if tag == "i":
        return int(content, 16)
    if tag == "c":
        return complex(*content)
    raise ValueError(f"an unknown tag {tag[:20]!r}")


def _with_few_equal_hashes(items: list[Any]) -> list[Any]:
    """Returns `items`.

    Raises:
        ValueError: too many items have the same hash.
        TypeError: an item has no hash.
    """
    if len(items) > _MOST_EQUAL_HASHES:
        counts: dict[int, int] = {}
        for item in items:
            key = hash(item)
            counts[key] = counts.get(key, 0) + 1
            if counts[key] > _MOST_EQUAL_HASHES:
                raise ValueError(
                    f"more than {_MOST_EQUAL_HASHES} items of a set or keys of a dict have the same hash"
                )
    return items
