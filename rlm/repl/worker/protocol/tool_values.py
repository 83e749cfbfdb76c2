"""Plain values as JSON and back, with their exact types: what the code hands to a tool. To read them runs nothing and
imports nothing, so the host can do it with whatever a worker sends."""

from __future__ import annotations

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_BYTES = 64 << 20
"""Bytes that the result of a call may have, encoded. To arguments applies what `messages.py` says."""

MOST_LEVELS = 100
"""How deep values may be nested."""

_MOST_ALIKE = 100
"""Items of a set and keys of a dict that may have the same hash: of numbers and tuples the sender chooses it, and to make a set
of n that share one takes n * n comparisons."""

_SMALL = 1 << 63
_SEQUENCES: tuple[tuple[Any, str], ...] = ((tuple, "t"), (set, "s"), (frozenset, "f"))
_SETS: dict[str, Callable[[Any], Any]] = {"s": set, "f": frozenset}


class _UnfitError(Exception):
    """A part that cannot be sent: what is wrong with it, and the way to it, which is found out on the way up."""

    def __init__(self, kind: type[Exception], problem: str) -> None:
        self.kind, self.problem = kind, problem
        self.steps: list[str] = []


def to_json(value: Any, where: str) -> Any:
    """
    Args:
        value: a str, bytes, int, float, complex, bool or None, or a list, tuple, dict, set or frozenset of such. An
            instance of a subclass, or a number of numpy's, becomes the plain value that it equals.
        where: what errors call it.

    Raises:
        TypeError: it holds something else; says where.
        ValueError: it is nested too deep, or contains itself.
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
        number = value.item()  # what is no subclass of Python's numbers
        if type(number) is not kind:  # of a long double there is no other
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
            done.append(_to_json(item, levels))  # noqa: PERF401 (its length is the place of the error)
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
    """The value of which `to_json` made this.

    Raises:
        ValueError: it did not; or there is a set or dict with many items that have the same hash.
    """
    try:
        return _from_json(data, MOST_LEVELS)
    except (TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"no value: {error}") from error


def _from_json(data: Any, levels: int) -> Any:
    kind = type(data)
    if kind is not list and kind is not dict:
        return data
    if levels < 0:
        raise ValueError("nested too deep")
    if kind is list:
        return [_from_json(item, levels - 1) for item in data]
    if len(data) != 1:
        raise ValueError(f"{len(data)} tags")
    ((tag, content),) = data.items()
    if tag == "t":
        return tuple([_from_json(item, levels - 1) for item in content])
    if tag in _SETS:
        return _SETS[tag](_unlike([_from_json(item, levels - 1) for item in content]))
    if tag == "d":
        return {key: _from_json(item, levels - 1) for key, item in content.items()}
    if tag == "p":
        pairs = [(_from_json(key, levels - 1), _from_json(item, levels - 1)) for key, item in content]
        _unlike([key for key, _ in pairs])
        return dict(pairs)
    if tag == "b":
        return binascii.a2b_base64(content)
    if tag == "i":
        return int(content, 16)
    if tag == "c":
        return complex(*content)
    raise ValueError(f"an unknown tag {tag[:20]!r}")


def _unlike(items: list[Any]) -> list[Any]:
    """The items.

    Raises:
        ValueError: too many have the same hash.
        TypeError: one has none.
    """
    if len(items) > _MOST_ALIKE:
        counts: dict[int, int] = {}
        for item in items:
            key = hash(item)
            counts[key] = counts.get(key, 0) + 1
            if counts[key] > _MOST_ALIKE:
                raise ValueError(
                    f"more than {_MOST_ALIKE} items of a set or keys of a dict have the same hash"
                )
    return items
