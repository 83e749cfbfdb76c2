"""Texts about values and errors. Where possible they are made without running code of the values."""

from __future__ import annotations

import linecache
import os
import traceback
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


_HERE = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120 (no pathlib)
"""The folder of the worker's own code, whose frames are left out of tracebacks."""
_SIZED: tuple[tuple[Any, str], ...] = (
    (str, "characters"),
    (bytes, "bytes"),
    (bytearray, "bytes"),
    (list, ""),
    (tuple, ""),
    (dict, ""),
    (set, ""),
    (frozenset, ""),
    (deque, ""),
)
_class_attribute = type.__dict__["__name__"].__get__


def cut(text: str, most: int) -> str:
    """A text, cut to at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def class_name(value: Any) -> str:
    return cut(str(_class_attribute(type(value))), 80)


def describe(value: Any) -> str:
    """A short description of a value, in constant time."""
    kind = type(value)
    if value is None or kind is bool:
        return repr(value)
    if kind is float or (kind is int and value.bit_length() <= 64):
        return f"{kind.__name__} {value!r}"
    name = class_name(value)
    for base, unit in _SIZED:
        if issubclass(kind, base):  # isinstance() would ask the value for its __class__
            return f"{name} of {base.__len__(value):,} {unit}".rstrip()
    if issubclass(kind, type):
        return f"class {_class_attribute(value)}"[:100]
    return name


def one_line(value: Any) -> str:
    """The beginning of `str(value)`, on one line."""
    return cut(" ".join(str(value)[:1000].split()), 300)


def one_line_error(error: BaseException) -> str:
    """The name of an error's class and the beginning of its text, on one line."""
    name = class_name(error)
    try:
        text = one_line(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        text = "<its text could not be had>"
    return f"{name}: {text}" if text else name


def bounded(text: str, limit: int = 1 << 20) -> str:
    """A text without its middle, if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... [{len(text) - 2 * half:,} characters left out] ...\n{text[-half:]}"


def trace(error: BaseException) -> str:
    """The traceback as Python shows it, without the worker's own frames."""
    try:
        if type(error) is SyntaxError and error.text is None and error.filename and error.lineno:
            error.text = linecache.getline(error.filename, error.lineno)  # the compiler looks in files only
        shown = traceback.TracebackException(type(error), error, error.__traceback__)
        seen: list[Any] = [shown]
        for item in seen:
            item.stack[:] = [frame for frame in item.stack if not frame.filename.startswith(_HERE)]
            inner = [item.__cause__, item.__context__, *(getattr(item, "exceptions", None) or ())]
            seen += [other for other in inner if other is not None]
        return "".join(shown.format())
    except KeyboardInterrupt:
        raise
    except BaseException:
        return _plain_trace(error)


def _plain_trace(error: BaseException) -> str:
    """A simple traceback, for errors that the `traceback` module cannot show, or if the code broke that module."""
    lines = ["Traceback (most recent call last):"]
    step = error.__traceback__
    while step is not None and len(lines) < 50:
        code = step.tb_frame.f_code
        if not code.co_filename.startswith(_HERE):
            lines.append(f'  File "{code.co_filename}", line {step.tb_lineno}, in {code.co_name}')
        step = step.tb_next
    return "\n".join([*lines, one_line_error(error), ""])
