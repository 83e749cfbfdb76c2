"""Exit codes."""

from __future__ import annotations

from enum import IntEnum

from rlm.cli.printing import ClosedPipeError, UnwrittenError
from rlm.errors import (
    ConfigError,
    ContextError,
    ContextLengthError,
    LimitError,
    ModelError,
    REPLError,
    RLMError,
)


class ExitCode(IntEnum):
    """Exit codes of `rlm`."""

    ANSWERED = 0
    NO_ANSWER = 1
    """The run ended without an answer, at a limit or because its history outgrew the model's window. From `rlm doctor`:
    `rlm run` cannot work."""
    USAGE = 2
    """An option, a file or the configuration does not fit. Nothing was asked of a model."""
    MODEL = 3
    """The model could not be reached, refused the call, or failed in every attempt."""
    REPL = 4
    """The REPL could not run."""
    OTHER = 70
    """The operating system refused something, or rlm has a bug."""
    UNWRITTEN = 74
    """Stdout did not take the answer (a full disk), or was closed when the command started."""
    INTERRUPTED = 130
    """Ctrl-C."""
    CLOSED_PIPE = 141
    """The reader of stdout closed it."""
    TERMINATED = 143
    """SIGTERM."""


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of an error."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, ClosedPipeError):
        return ExitCode.CLOSED_PIPE
    if isinstance(error, UnwrittenError):
        return ExitCode.UNWRITTEN
    if not isinstance(error, RLMError):
        return ExitCode.OTHER
    if isinstance(error, ConfigError | ContextError):
        return ExitCode.USAGE
    if isinstance(error, LimitError | ContextLengthError):
        return ExitCode.NO_ANSWER
    if isinstance(error, ModelError):
        return ExitCode.MODEL
    if isinstance(error, REPLError):
        return ExitCode.REPL
    return ExitCode.NO_ANSWER
