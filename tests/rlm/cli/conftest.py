"""Runs the program in a process of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlm.testing import ChatRequest, ModelServer, finish, serve

# Warnings are errors, except that a machine has no sandbox.
PROGRAM = (sys.executable, "-W", "error", "-W", "ignore:there is no sandbox", "-m", "rlm")

_VARIABLES = (
    "RLM_",
    "OPENAI_",
    "OPENROUTER_",
    "AI_GATEWAY_",
    "PORTKEY_",
    "AZURE_",
    "ANTHROPIC_",
    "GEMINI_",
    "GOOGLE_",
)


def environment(**variables: str) -> dict[str, str]:
    """This environment without keys and servers, with help texts of 100 columns."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
    return {**kept, "COLUMNS": "100", **variables}


@dataclass(frozen=True, slots=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def rlm(tmp_path: Path) -> Run:
    """Runs `rlm` in an empty folder. Stdin is empty unless it is given."""

    def run(*words: str, stdin: bytes | None = None, **variables: str) -> Done:
        done = subprocess.run(
            [*PROGRAM, *words],
            cwd=tmp_path,
            env=environment(**variables),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
            timeout=50,
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def describing(request: ChatRequest) -> str:
    """Answers with the context that the code sees, and with the question."""
    if request.is_subcall:
        return "seen"
    said = "\n".join(str(message["content"]) for message in request.messages)
    asked = next((word for word in ("Which?", "Sum?") if word in said), "no question")
    return finish(f"f'{{context!r}} | {asked}'")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """A server whose model answers with its context and question."""
    with serve(describing) as server:
        yield server
