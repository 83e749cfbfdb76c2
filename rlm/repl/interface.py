"""The interface of a REPL, and of a place where REPLs run, as the engine uses them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlm.context import Context
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.tools import Toolbox, ToolReport
from rlm.types import Message


@dataclass(frozen=True, slots=True)
class Query:
    """One call of `llm_query`, `llm_query_batched`, `rlm_query` or `rlm_query_batched` by the code."""

    kind: Literal["llm", "rlm"]
    prompts: list[Any]
    """One item per prompt. Prompts come from the code unchecked: each can be anything that JSON can carry."""
    model: str | None
    batched: bool


@dataclass(frozen=True, slots=True)
class QueryReply:
    """The answer to one prompt. In the REPL a reply that `failed` becomes a `SubcallError`: a str that starts with
    "Error: ". Its type distinguishes it from an answer."""

    text: str
    failed: bool = False


QueryHandler = Callable[[Query], Awaitable[Sequence[QueryReply]]]
"""Answers a query with one reply for each prompt, in the order of the prompts. It is called concurrently when threads of
the code ask concurrently. The call is cancelled when the cell that asked is interrupted."""


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a REPL starts with: `settings` come from the user, everything else from the engine."""

    contexts: Sequence[Context] = ()
    """The values of `context_0`, `context_1`, ...; `context` is the last one."""
    history: Sequence[Sequence[Message]] = ()
    """The messages of earlier completions, one list for each, as `history`."""
    tools: Toolbox | None = None
    """Functions of the host, and values, that the code finds beside its contexts."""
    on_tool: Callable[[ToolReport], None] | None = None
    """Called when a call of a tool has ended, unless the call was cancelled."""
    settings: REPLSettings = field(default_factory=REPLSettings)


CellStatus = Literal["ok", "error", "exit", "interrupted", "killed", "died"]
"""How a cell ended.

- ok: without an exception.
- error: with an exception.
- exit: with SystemExit.
- interrupted: the time limit or the caller stopped the cell; the namespace is kept.
- killed: the cell did not stop when it was interrupted, so its process tree was killed. The next cell finds the namespace
  as it was before, or a fresh one with the contexts alone; the error says which.
- died: the worker ended by itself (a crash, no memory, `os._exit`). The next cell finds what it finds after "killed".
"""


@dataclass(frozen=True, slots=True)
class AnswerState:
    """The `answer` variable after a cell."""

    content: str
    """`answer["content"]` as text."""
    ready: bool
    note: str | None = None
    """A line for the model if the code used `answer` in a way that cannot work."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell did."""

    status: CellStatus
    stdout: str
    """At most `max_output_chars` characters: head and tail. A line between them says how many characters were left out."""
    stderr: str
    """Bounded as `stdout` is. Ends with the traceback if there was an exception."""
    error: str | None
    """One line: `ZeroDivisionError: division by zero`, `interrupted after 300 s`, ...; None if the status is ok."""
    answer: AnswerState
    locals: dict[str, str]
    """The names that the code assigned, and a short description of each value (`list of 12`, `str of 4,096 characters`)."""
    seconds: float
    """Wall-clock time."""


class REPL(Protocol):
    """One persistent namespace. Runs one cell at a time."""

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """Runs a cell. Whatever the code does is a result, never an exception.

        Args:
            code: Python source.
            timeout: seconds for this cell, if that is less than `REPLSettings.cell_timeout`.

        Raises:
            REPLError: the worker is gone and cannot be replaced, or the REPL is closed.
            asyncio.CancelledError: the caller was cancelled; the cell is stopped first.
        """
        ...

    def interrupt(self, reason: str) -> None:
        """Stops the cell that runs, as its time limit would. `execute` then returns with the status "interrupted", or
        "killed" after `stop_grace`, and with an error line that says `reason`. Half a second after `stop_grace` it
        returns even if the killed processes have not ended yet. Does nothing between cells."""
        ...

    async def extend(
        self,
        contexts: Sequence[Context] = (),
        history: Sequence[Sequence[Message]] | None = None,
        *,
        fresh_answer: bool = False,
    ) -> None:
        """Gives the REPL the contexts and the history of a further completion, between two cells. A fresh worker that
        replaces the present one gets them too.

        Args:
            contexts: become the next `context_N`; the last one becomes `context`.
            history: replaces `history`; None: it stays.
            fresh_answer: makes `answer` empty and not ready again.

        Raises:
            REPLError: the REPL is closed, or cannot hold the contexts. Nothing has changed then.
            asyncio.CancelledError: the caller was cancelled. The REPL gets the contexts and the history nevertheless.
        """
        ...

    async def close(self) -> None:
        """Ends every process of the REPL. Idempotent, and safe while a cell runs. Waits at most half a second for
        processes to end: the kernel may need longer to free their memory."""
        ...


class Environment(ABC):
    """A place where REPLs run. One object serves many REPLs, and `register_environment` gives it a name. docs/places.md
    shows how to write one."""

    @abstractmethod
    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        """Starts a REPL.

        Args:
            on_query: answers the queries of the code.

        Raises:
            REPLError: the REPL could not be started.
        """

    def check(self, settings: REPLSettings) -> None:  # noqa: B027 (a default, not a gap)
        """Called when an `RLM` is made, before any model is asked. Accepts everything unless it is overridden.

        Raises:
            ConfigError: this place cannot have a REPL with these settings.
        """
