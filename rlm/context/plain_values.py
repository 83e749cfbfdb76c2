"""Plain values: the values that can be sent to a REPL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rlm._wording import a
from rlm.errors import ContextError

SCALARS: Final = frozenset({str, int, float, bool, type(None), bytes, complex})
CONTAINERS: Final = (list, tuple, dict, set, frozenset)
_MAX_DEPTH: Final = 1000


def to_plain(value: Any, path: str, replace: Callable[[Any], Any] | None = None) -> Any:
    """Returns `value` itself if it is plain at every depth, otherwise a plain copy. Plain are values whose type is exactly
    str, bytes, int, float, complex, bool or None, and lists, tuples, dicts, sets and frozensets of plain values. An instance
    of a subclass, or a numpy number, becomes the plain value that it equals.

    Args:
        path: the message's name for the value.
        replace: called with each value that cannot be made plain; returns a value to send in its place, or the same value.

    Raises:
        ContextError: the value holds something else (the message says where), or is nested too deep.
    """
    try:
        return value if _is_plain(value) else _Copy(replace).of(value, path)
    except RecursionError as error:
        raise ContextError(f"the {path} is nested too deep, or contains itself") from error


def _is_plain(value: Any) -> bool:
    """Whether a value is plain at every depth. Faster than a copy, and true for nearly all values."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            kind = type(container)
            if kind is dict:
                if not SCALARS.issuperset(map(type, container)):
                    below += [key for key in container if type(key) not in SCALARS]
                items = container.values()
            elif kind in CONTAINERS:
                items = container
            elif kind in SCALARS:
                continue
            else:
                return False
            if not SCALARS.issuperset(map(type, items)):
                below += [item for item in items if type(item) not in SCALARS]
        if not below:
            return True
        level = below
    return False


class _Copy:
    """Makes a plain copy of a value."""

    def __init__(self, replace: Callable[[Any], Any] | None) -> None:
        self._replace = replace

    def of(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in SCALARS:
            return value
        if isinstance(value, dict):
            return {
                self.of(key, f"a key of {path}"): self.of(item, f"{path}[{_short(key)}]")
                for key, item in dict.items(value)
            }
        for container in (list, tuple, set, frozenset):
            if isinstance(value, container):
                return container(self.of(item, f"{path}[{index}]") for index, item in enumerate(value))
        for base, convert in _BASES:
            if isinstance(value, base):
                return convert(value)
        if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            number = value.item()
            if type(number) is not kind:  # `item` of a long double returns a long double
                return self.of(number, path)
        plainer = value if self._replace is None else self._replace(value)
        if plainer is not value:
            return self.of(plainer, path)
        raise ContextError(
            f"{path} is {a(value)}: only str, bytes, int, float, complex, bool, None, and lists, tuples, dicts and "
            f"sets of them can be sent{advice(value)}"
        )


_BASES: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (int, int.__index__),
    (float, float.__float__),
    (complex, complex.__complex__),
    (str, str.__str__),
    (bytes | bytearray, lambda data: bytes(memoryview(data))),
)


def _short(key: Any) -> str:
    text = repr(key) if type(key) in SCALARS else f"<{type(key).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


def advice(value: Any) -> str:
    """The end of a message about a value that cannot be sent: what to pass in its place."""
    if value is None:
        return "; pass the input itself, an empty str if there is none"
    if isinstance(value, (set, frozenset, range)) or hasattr(value, "__next__"):
        return "; pass list(...) of it"
    for method in ("isoformat", "as_posix", "to_dict", "model_dump", "tolist", "read"):
        if callable(getattr(value, method, None)) and not isinstance(value, type):
            return f"; pass {'str(...) of it' if method == 'as_posix' else f'its {method}()'}"
    if callable(value):
        return "; functions and classes cannot be sent"
    return "; pass a str, or plain data made of it"
