"""Custom tools: functions of the host that the code in a REPL can call, and values that it finds there."""

from __future__ import annotations

import asyncio
import functools
import inspect
import keyword
import logging
import re
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlm._wording import a
from rlm.aio.threads import Threads
from rlm.context import Context
from rlm.context.plain_values import SCALARS, to_plain
from rlm.errors import ConfigError, ContextError

_log = logging.getLogger(__name__)

RESERVED = frozenset({
    "answer", "context", "history", "llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched",
    "SHOW_VARS", "SubcallError", "ToolError", "FINAL", "FINAL_VAR", "_",
})  # fmt: skip
"""Names of the REPL that a tool cannot have. `context_0`, `context_1`, ... and names with two underscores at both ends are
reserved too."""

_MOST_DESCRIPTION = 600
_MOST_MESSAGE = 20_000
_BUNDLED = 1 << 16
"""Bytes up to which a value is sent together with others."""

in_thread = Threads(64).run
"""Runs a function in one of the threads for tools. See `Threads.run`."""
converting = Threads(2).run
"""Runs a function that only converts values, in threads apart from those for tools, which may block. More than two threads
would only wait for each other."""


@dataclass(frozen=True, slots=True)
class ToolReport:
    """A finished call of a tool by the code."""

    name: str
    seconds: float
    error: str | None
    """The type and the message of the exception that the tool raised; None: it returned."""


class ToolError(Exception):
    """The exception that a tool raised, in the form that the code gets.

    Args:
        kind: the name of the type.
        text: the message.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind
        self.text = text


class Toolbox:
    """The tools of a run. Made once, and shared by all its REPLs. Immutable."""

    def __init__(self) -> None:
        self._functions: dict[str, _HostFunction] = {}
        self._lines: list[str] = []
        self._values: list[tuple[str, Context]] = []

    @classmethod
    def of(cls, tools: Mapping[str, Any] | Toolbox | None) -> Toolbox:
        """Makes a toolbox.

        Args:
            tools: tools by their names in the REPL. A tool is a callable, sync or async, which runs on the host; a value, of
                which the REPL gets a copy (None, bool, int, float, complex, sets, and everything that can be a `Context`);
                or `{"tool": callable or value, "description": text}`. None: no tools.

        Raises:
            ConfigError: a name cannot be used, or a value cannot be sent; the message says which and where.
        """
        if isinstance(tools, Toolbox):
            return tools
        if not isinstance(tools, Mapping | None):
            raise ConfigError(
                f"tools are given as a dict of names and tools, not as a {type(tools).__name__}"
            )
        box = cls()
        bundle: dict[str, Any] = {}
        for name, entry in (tools or {}).items():
            _check_name(name)
            tool, description = _split(name, entry)
            if callable(tool):
                function = box._functions[name] = _HostFunction(name, tool, description)
                box._lines.append(_line(function.head, _first_paragraph(function.doc)))
                continue
            value, summary = _value_and_summary(name, tool)
            if isinstance(value, Context):
                box._values.append((name, value))
            else:
                bundle[name] = value
            box._lines.append(_line(name, _first_paragraph(f"{summary}. {description or ''}")))
        if bundle:
            box._values.append(("", Context(bundle)))
        return box

    def __bool__(self) -> bool:
        """Whether there is any tool."""
        return bool(self._lines)

    def describe(self) -> str:
        """Lines for the prompt, one for each tool, in the order in which they were given. A function has its signature, and
        its description or the first paragraph of its docstring. A value has its type, its size and its description. Empty:
        there are no tools."""
        return "\n".join(self._lines)

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The functions in the form that `worker.process.tools.make_tools` takes."""
        return [function.told for function in self._functions.values()]

    @property
    def values(self) -> Sequence[tuple[str, Context]]:
        """The values with their names in the REPL. A value without a name is a dict of names and values."""
        return self._values

    def identity(self) -> list[Any]:
        """The tools as the code sees them, as plain data: the name, signature and docstring of each function, and the hash of
        each value. The first call is slow for a large value, which it hashes."""
        return [self.functions, [[name, value.describe()] for name, value in self._values]]

    async def call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls a tool: an async tool on this event loop, any other in a thread.

        Returns:
            The result, as plain values with no subclasses.

        Raises:
            ToolError: the tool raised an exception, there is no such tool, or its result cannot be sent.
            asyncio.CancelledError: the caller was cancelled. An async tool is cancelled too. A function in a thread runs on,
                and its result is dropped.
        """
        function = self._functions.get(name)
        if function is None:
            raise ToolError("NameError", _cut(f"there is no tool {name!r}"))
        function.check(args, kwargs)
        if function.is_async:
            result = await _finish(name, lambda: function.call(*args, **kwargs))
        else:
            result = await in_thread(lambda: _run(name, function.call, args, kwargs))
            if inspect.isawaitable(result):
                result = await _finish(name, lambda: result)
        if type(result) in SCALARS:
            return result
        return await converting(lambda: _plain_result(name, result))


class _HostFunction:
    """A tool that is a function of the host."""

    def __init__(self, name: str, function: Callable[..., Any], description: str | None) -> None:
        self._name = name
        self.call = function
        inner: Any = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.is_async = any(
            inspect.iscoroutinefunction(part)
            for part in (inner, getattr(inner, "__call__", None))  # noqa: B004 (an object may have an async one)
        )
        self.doc = (description or inspect.getdoc(inner) or "").strip()
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):  # some builtins have no signature
            self._signature = None
            self.head = f"{name}(...)"
            self.told: dict[str, Any] = {"name": name, "doc": self.doc, "parameters": None, "returns": None}
            return
        self._signature = signature
        parameters = [
            parameter.replace(
                default=_shown(parameter.default, _default_text),
                annotation=_shown(parameter.annotation, _annotation_text),
            )
            for parameter in signature.parameters.values()
        ]
        returns = _shown(signature.return_annotation, _annotation_text)
        self.head = f"{name}{signature.replace(parameters=parameters, return_annotation=returns)}"
        self.told = {
            "name": name,
            "doc": self.doc,
            "parameters": [[p.name, int(p.kind), _told(p.default), _told(p.annotation)] for p in parameters],
            "returns": _told(returns),
        }

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Checks the arguments of a call.

        Raises:
            ToolError: the function does not take these arguments.
        """
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise ToolError("TypeError", _cut(f"{self._name}(): {error}")) from error


class _Text(str):
    """A default or an annotation as text. A signature shows it without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _shown(value: Any, to_text: Callable[[Any], str]) -> Any:
    return value if value is inspect.Parameter.empty else _Text(to_text(value))


def _told(value: Any) -> str | None:
    return str(value) if isinstance(value, _Text) else None


def _annotation_text(annotation: Any) -> str:
    if not isinstance(annotation, str):
        return inspect.formatannotation(annotation)
    quoted = annotation[:1] == annotation[-1:] and annotation[:1] in ("'", '"')
    return annotation[1:-1] if quoted else annotation


def _default_text(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # a `__repr__` that fails, or an int of more digits than Python shows
        return "..."
    return text if len(text) <= 60 and " at 0x" not in text else "..."


async def _finish(name: str, start: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await start()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _failure(name, error) from error  # a task that the tool waited for was cancelled
    except (Exception, SystemExit) as error:
        raise _failure(name, error) from error


def _run(name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except BaseException as error:  # in this thread even KeyboardInterrupt comes from the tool
        raise _failure(name, error) from error


def _plain_result(name: str, result: Any) -> Any:
    try:
        return to_plain(result, f"result of {name}()")
    except ContextError as error:
        raise ToolError("TypeError", str(error)) from error


def _failure(name: str, error: BaseException) -> ToolError:
    _log.debug("the tool %s failed", name, exc_info=error)
    argument = error.args[0] if len(error.args) == 1 else None
    try:
        text = argument if type(argument) is str else str(error)  # str(KeyError("x")) is "'x'"
    except Exception:
        text = ""
    return ToolError(type(error).__name__, _cut(text))


def _cut(message: str) -> str:
    """Cuts a long message: the code may have chosen it, and it goes to the log."""
    if len(message) <= _MOST_MESSAGE:
        return message
    return f"{message[:_MOST_MESSAGE]}... ({len(message):,} characters)"


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"the name of a tool must be a Python identifier, not {name!r}")
    normal = unicodedata.normalize("NFKC", name)
    if name != normal:
        raise ConfigError(
            f"a tool cannot be named {name!r}: Python reads that as {normal!r}, so use this name"
        )
    if keyword.iskeyword(name):
        raise ConfigError(f"a tool cannot be named {name!r}: it is a keyword of Python")
    if name in RESERVED or re.fullmatch(r"context_\d+|__.*__", name):
        raise ConfigError(f"a tool cannot be named {name!r}: the REPL uses that name itself")


def _split(name: str, entry: Any) -> tuple[Any, str | None]:
    """Splits an entry into the tool and its description."""
    if not isinstance(entry, dict) or "tool" not in entry or not entry.keys() <= {"tool", "description"}:
        return entry, None
    description = entry.get("description")
    if not isinstance(description, str | None):
        raise ConfigError(
            f"the description of the tool {name!r} must be a str, not a {type(description).__name__}"
        )
    return entry["tool"], description


def _value_and_summary(name: str, value: Any) -> tuple[Any, str]:
    """Returns a value in the form that is sent, and a summary of it."""
    try:
        if isinstance(value, bool | int | float | complex | None):
            number = to_plain(value, name)
            text = _default_text(number)
            return number, a(number) if text == "..." else text
        if isinstance(value, set | frozenset):
            return to_plain(value, name), f"a {type(value).__name__} of {len(value):,} items"
        context = Context.of(value)
    except ContextError as error:
        text = str(error)
        where = name + text.removeprefix("context") if text.startswith("context[") else text
        raise ConfigError(f"the tool {name!r} is not callable and cannot be sent: {where}") from error
    bundled = not context.has_file and context.encoded_size <= _BUNDLED
    return context.value if bundled else context, context.summary


def _line(head: str, text: str) -> str:
    return f"- `{head}`: {text}" if text else f"- `{head}`"


def _first_paragraph(text: str) -> str:
    paragraph = " ".join(text.strip().split("\n\n", 1)[0].split())
    return paragraph if len(paragraph) <= _MOST_DESCRIPTION else paragraph[: _MOST_DESCRIPTION - 3] + "..."
