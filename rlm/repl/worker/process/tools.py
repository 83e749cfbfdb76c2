"""The tools of the host, as functions in the namespace of the code. `rlm.repl.tools` is the host's end."""

from __future__ import annotations

import builtins

from .namespace import Shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_POSITIONAL_ONLY, _POSITIONAL, _REST, _KEYWORD_ONLY, _OPTIONS = range(5)
"""Kinds of parameters, numbered as in `inspect`, which the worker does not import to save memory."""


class ToolError(RuntimeError):
    """A tool raised an exception that is not a builtin one. The text is its type and its message."""

    __module__ = "__main__"


def make_tools(
    call: Callable[[str, tuple[Any, ...], dict[str, Any]], tuple[str | None, Any]],
    tools: list[dict[str, Any]],
) -> dict[str, Any]:
    """Makes the functions, by name.

    Args:
        call: calls a tool. Returns None and its result, or the name of an exception's type and its message.
        tools: for each tool its "name", "doc", "parameters" and "returns". The parameters are lists of name, kind, default
            and annotation, the last two as text or None; "parameters" is None if they are not known.
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
    """Makes a function with the signature of a tool. `help` and `inspect.signature` show it."""
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
            pass  # the class takes arguments other than a text
    return ToolError(f"{kind}: {message}" if message else kind)
