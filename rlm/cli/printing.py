"""Printing of commands, to stdout and stderr."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from rlm.errors import RLMError


class ClosedPipeError(Exception):
    """The reader of stdout has closed it."""


class UnwrittenError(RLMError):
    """Stdout did not take what the command printed."""


def emit(text: str) -> None:
    """Prints the result of a command to stdout. Characters that stdout's encoding lacks are escaped.

    Raises:
        ClosedPipeError: the reader of stdout has closed it.
        UnwrittenError: stdout did not take the text.
    """
    require_stdout()
    out = sys.stdout
    data = f"{text}\n".encode(getattr(out, "encoding", None) or "utf-8", "backslashreplace")
    try:
        out.flush()
        out.buffer.write(data)
        out.flush()
    except BrokenPipeError:
        _discard_stdout()
        raise ClosedPipeError from None
    except OSError as error:
        _discard_stdout()
        raise UnwrittenError(f"stdout could not be written: {error.strerror or error}") from None


def require_stdout() -> None:
    """Checks that there is a stdout.

    Raises:
        UnwrittenError: the command was started without stdout.
    """
    if sys.stdout is None:
        raise UnwrittenError("stdout could not be written: it is closed")


def emit_json(data: dict[str, Any]) -> None:
    """Prints one JSON object, on one line, in ASCII; see `emit`."""
    emit(json.dumps(data, default=str, allow_nan=False))


def say(text: str) -> None:
    """Prints a line for the user to stderr. Never fails."""
    if sys.stderr is None:  # then `print` would write to stdout
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"rlm: {text}", file=sys.stderr, flush=True)


def _discard_stdout() -> None:
    """Points stdout at /dev/null, because the interpreter flushes stdout once more when it exits."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
