"""The background loop of callers without an event loop: interrupts, exits and callbacks that raise."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from rlm import RLM
from rlm.aio.background import background
from rlm.clients.base import Client, ModelReply
from rlm.errors import ConfigError
from rlm.testing import FINISH, ScriptedClient, finish
from rlm.types import Message, SamplingArgs


def done(**options: Any) -> RLM:
    return RLM(client=ScriptedClient(lambda request: FINISH), **options)


class Calls(Client):
    """A client that calls a function before it replies."""

    model = "m"

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        self.action()
        return ModelReply(FINISH, "m")


def test_a_completion_on_the_background_loop_itself_is_refused() -> None:
    refusals: list[ConfigError] = []

    def ask(*_: Any) -> None:
        for call in (lambda: done().completion("x"), lambda: done().map(["x"])):
            try:
                call()
            except ConfigError as error:
                refusals.append(error)

    async def tool() -> None:
        ask()

    assert done(on_iteration_start=ask).completion("x").response == "done"
    assert len(refusals) == 2
    assert "await acompletion()" in str(refusals[0])
    code = finish("'told'", "tool()")
    rlm = RLM(client=ScriptedClient(lambda request: code), custom_tools={"tool": tool})
    assert rlm.completion("x").response == "told"
    assert len(refusals) == 4


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_an_exception_of_a_callback_changes_nothing(kind: type[BaseException]) -> None:
    def leave(*_: Any) -> None:
        raise kind

    assert done(on_iteration_start=leave).completion("x").response == "done"
    assert done().completion("x").response == "done"


async def test_a_keyboard_interrupt_in_the_main_thread_passes_a_callback() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    rlm = done(on_iteration_start=interrupt)

    async def run() -> str:
        try:
            return (await rlm.acompletion("x")).response
        except KeyboardInterrupt:
            return "interrupted"

    assert await run() == "interrupted"


def test_a_system_exit_of_a_client_ends_its_completion_and_no_other() -> None:
    rlm = RLM(client=Calls(lambda: sys.exit(3)))
    with pytest.raises(SystemExit):
        rlm.completion("x")
    assert done().completion("x").response == "done"


class _SoftLimitError(Exception):
    """The exception that task queues raise in a signal handler at a time limit."""


@pytest.fixture
def soft_limit() -> Iterator[signal.Signals]:
    def over(*_: Any) -> None:
        raise _SoftLimitError

    before = signal.signal(signal.SIGUSR1, over)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_an_exception_of_a_signal_handler_is_raised_after_the_run_has_ended(
    soft_limit: signal.Signals,
) -> None:
    caller = threading.get_ident()
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            signal.pthread_kill(caller, soft_limit)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True

    with pytest.raises(_SoftLimitError):
        background.run(work)
    assert ended


def test_a_call_that_cannot_start_raises_its_error() -> None:
    with pytest.raises(ConfigError, match=r"no option .unknown."):
        done().map(["x"], unknown=1)  # type: ignore[call-arg]
