"""What the engine asks of a REPL, and of a place that can run one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlm.context import Context
from rlm.repl.tools import Toolbox, ToolCall
from rlm.types import Message


@dataclass(frozen=True, slots=True)
class Query:
    """What the code asked by one call of `llm_query`, `llm_query_batched`, `rlm_query`, `rlm_query_batched`."""

    kind: Literal["llm", "rlm"]
    prompts: list[Any]
    """One item per prompt. Comes from the code: anything that JSON can carry, checked by who answers."""
    model: str | None
    batched: bool


@dataclass(frozen=True, slots=True)
class QueryReply:
    """One item's answer. In the REPL a reply that `failed` becomes a `SubcallError`: a str that starts with
    "Error: " and can be told from an answer by its type."""

    text: str
    failed: bool = False


QueryHandler = Callable[[Query], Awaitable[Sequence[QueryReply]]]
"""Answers with as many replies as there are prompts, in their order. Called concurrently when threads of the code ask
concurrently; cancelled when the cell that asked was interrupted."""


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a REPL starts with."""

    contexts: Sequence[Context] = ()
    """`context_0`, `context_1`, ...; `context` is the last."""
    history: Sequence[Sequence[Message]] = ()
    """Message lists of earlier completions, as `history`."""
    tools: Toolbox | None = None
    """Functions of the host and values that the code finds beside its contexts."""
    on_tool: Callable[[ToolCall], None] | None = None
    """Is told of each call of a tool that has ended, and was not cancelled."""
    cell_timeout: float | None = 300.0
    """Seconds that a cell may take, sub-calls included; None: no limit."""
    interrupt_grace: float = 2.0
    """Seconds between the interrupt of a cell and the kill of its process tree."""
    stop_grace: float | None = None
    """The same where it is not the cell's own time that is up, but the caller who stops it: a limit of the run, a cancellation.
    None: as `interrupt_grace`; in runs that do not leave their REPL to another one, 0.08, as nothing comes after."""
    max_output_chars: int = 20_000
    """Characters that are kept of a cell's stdout, and of its stderr: head and tail."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Overrides of resource limits: memory_bytes, cpu_seconds, file_bytes, open_files."""
    checkpoint_bytes: int = 256 << 20
    """Memory up to which the state of the REPL is kept between cells, for the case that a cell has to be killed or ends the
    worker: the next one then goes on from there. 0: never."""
    checkpoint_after: float = 0.5
    """Seconds without work after which it is kept: while a model thinks, and not between cells that follow each other. More if
    keeping it takes more than a tenth of that. 0: after each cell, and then the next one waits for it."""
    seed: int | None = None
    """Seeds `random` (and numpy, once it is imported) if set; the hash seed is always fixed."""


CellStatus = Literal["ok", "error", "exit", "interrupted", "killed", "died"]
"""ok; error: an exception; exit: SystemExit; interrupted: the time limit or the caller stopped the cell, the namespace
is kept; killed: it did not yield, and the next cell finds the namespace as it was before, or in a fresh worker only the
contexts, as the error says; died: the worker ended by itself (a crash, out of memory, `os._exit`), likewise replaced."""


@dataclass(frozen=True, slots=True)
class AnswerState:
    """The `answer` variable after a cell."""

    content: str
    """`answer["content"]` as text."""
    ready: bool
    note: str | None = None
    """What to tell the model when it used `answer` in a way that cannot work."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell did."""

    status: CellStatus
    stdout: str
    """Bounded: head and tail, with a line between that says how much was left out."""
    stderr: str
    """Bounded likewise; ends with the traceback if there was an exception."""
    error: str | None
    """One line: `ZeroDivisionError: division by zero`, `interrupted after 300 s`, ...; None if the status is ok."""
    answer: AnswerState
    locals: dict[str, str]
    """User names and a short description of each value (`list of 12`, `str of 4,096 characters`)."""
    seconds: float


class REPL(Protocol):
    """One persistent namespace. Runs one cell at a time."""

    async def execute(self, code: str, *, timeout: float | None = None) -> CellResult:
        """Runs a cell. Whatever the code does is a result, never an exception.

        Args:
            code: Python source.
            timeout: seconds for this cell if that is less than the session's `cell_timeout`.

        Raises:
            REPLError: the worker is gone and cannot be replaced.
            asyncio.CancelledError: the caller was cancelled; the cell is stopped first.
        """
        ...

    def interrupt(self, reason: str) -> None:
        """Stops the cell that runs, as its time limit would: `execute` then returns with the status "interrupted" (or
        "killed", after `stop_grace`) and an error line that says `reason`. Does nothing between cells."""
        ...

    async def extend(
        self,
        contexts: Sequence[Context] = (),
        history: Sequence[Sequence[Message]] | None = None,
        *,
        fresh_answer: bool = False,
    ) -> None:
        """Gives the REPL, between two cells, what a further completion brings. A fresh worker that has to replace this one
        gets it too.

        Args:
            contexts: become the next `context_N`, and the last of them `context`.
            history: in place of what `history` is; None: it stays.
            fresh_answer: `answer` is empty and not ready again.

        Raises:
            REPLError: the REPL is closed, or cannot have the contexts; then nothing has changed.
            asyncio.CancelledError: the caller was cancelled; the REPL gets it all the same.
        """
        ...

    async def close(self) -> None:
        """Ends every process of the REPL. Idempotent, and safe while a cell runs."""
        ...


class Environment(Protocol):
    """A place where REPLs run. One object serves many.

    It may have a method `check(spec)`, which raises ConfigError where a `SessionSpec` cannot be had there: it is then called
    when an `RLM` is made, before any model is asked."""

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        """Starts a REPL.

        Raises:
            REPLError: it could not be started.
        """
        ...
