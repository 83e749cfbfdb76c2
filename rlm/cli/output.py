"""What a command prints."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

from rlm.errors import RLMError


class ClosedPipeError(Exception):
    """Who read stdout has gone."""


class UnwrittenError(RLMError):
    """Stdout did not take what the command printed."""


def emit(text: str) -> None:
    """Prints what the command was asked for, to stdout. What its encoding does not have is escaped.

    Raises:
        ClosedPipeError: the reader has gone.
        UnwrittenError: it could not be written.
    """
    require_stdout()
    out = sys.stdout
    data = f"{text}\n".encode(getattr(out, "encoding", None) or "utf-8", "backslashreplace")
    try:
        out.flush()
        out.buffer.write(data)
        out.flush()
    except BrokenPipeError:
        _silence()
        raise ClosedPipeError from None
    except OSError as error:
        _silence()
        raise UnwrittenError(f"stdout could not be written: {error.strerror or error}") from None


def require_stdout() -> None:
    """
    Raises:
        UnwrittenError: the command was started without stdout.
    """
    if sys.stdout is None:
        raise UnwrittenError("stdout could not be written: it is closed")


def emit_json(data: dict[str, Any]) -> None:
    """Prints one JSON object, on one line, in ASCII; see `emit`."""
    emit(json.dumps(data, default=str, allow_nan=False))


def say(text: str) -> None:
    """Tells the user something, on stderr. Never fails."""
    if sys.stderr is None:  # `print` would take stdout for it
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"rlm: {text}", file=sys.stderr, flush=True)


def _silence() -> None:
    """The interpreter flushes stdout once more when it ends."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
