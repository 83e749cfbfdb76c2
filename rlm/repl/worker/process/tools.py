"""Custom tools, as the code finds them in its namespace."""

from __future__ import annotations

import builtins

from .namespace import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_POSITIONAL_ONLY, _POSITIONAL, _REST, _KEYWORD_ONLY, _OPTIONS = range(5)
"""Kinds of parameters, numbered as in `inspect`, which a worker need not import for this."""


class ToolError(RuntimeError):
    """What a tool raised, where that is no exception of Python's own: its type and its message."""

    __module__ = "__main__"


def make_tools(
    call: Callable[[str, tuple[Any, ...], dict[str, Any]], tuple[str | None, Any]],
    tools: list[dict[str, Any]],
) -> dict[str, Any]:
    """The tools of the namespace, by name.

    Args:
        call: calls one; returns None and its result, or the name of an exception's type and its message.
        tools: of each "name", "doc", "parameters" (lists of name, kind, default and annotation, the last two as text or
            None; None if they are not known) and "returns".
    """
    return {tool["name"]: _make_tool(call, tool) for tool in tools}


def _make_tool(call: Any, tool: dict[str, Any]) -> Any:
    name: str = tool["name"]

    def function(*args: Any, **kwargs: Any) -> Any:
        kind, value = call(name, args, kwargs)
        if kind is None:
            return value
        raise _error(kind, value)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "__main__"
    function.__doc__ = tool["doc"]
    if tool["parameters"] is not None:
        function.__wrapped__ = _make_signature(tool)  # type: ignore[attr-defined]
    return function


def _make_signature(tool: dict[str, Any]) -> Any:
    """A function that shows what a tool takes and returns: `help` and `inspect.signature` look at it."""
    name, parameters = tool["name"], tool["parameters"]
    pieces: list[str] = []
    last, starred = None, False
    for parameter, kind, default, _ in parameters:
        if last == _POSITIONAL_ONLY and kind != last:
            pieces.append("/")
        if kind == _KEYWORD_ONLY and not starred:
            pieces.append("*")
        starred |= kind in (_REST, _KEYWORD_ONLY)
        stars = {_REST: "*", _OPTIONS: "**"}.get(kind, "")
        pieces.append(f"{stars}{parameter}{'' if default is None else '=0'}")
        last = kind
    if last == _POSITIONAL_ONLY:
        pieces.append("/")
    made: dict[str, Any] = {}
    exec(f"def {name}({', '.join(pieces)}): pass", made)
    function = made[name]
    function.__defaults__ = tuple(
        Shown(default) for _, kind, default, _ in parameters if default is not None and kind <= _POSITIONAL
    )
    function.__kwdefaults__ = {
        parameter: Shown(default)
        for parameter, kind, default, _ in parameters
        if default is not None and kind == _KEYWORD_ONLY
    }
    annotations = [(parameter, text) for parameter, _, _, text in parameters] + [("return", tool["returns"])]
    function.__annotations__ = {parameter: Shown(text) for parameter, text in annotations if text is not None}
    return function


def _error(kind: str, message: str) -> Exception:
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        try:
            return known(message) if message else known()
        except Exception:
            pass  # it is made of something else than a text
    return ToolError(f"{kind}: {message}" if message else kind)
