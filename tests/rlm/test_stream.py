"""Streams of events, cancellation and callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from typing import Any

import pytest

from rlm import RLM, events
from rlm.cancellation import CancelToken
from rlm.errors import CancellationError, ModelUnavailableError, RLMError, TimeoutExceededError
from rlm.testing import FINISH, ChatRequest, Fault, ScriptedClient, repl_block
from rlm.types import StopReason


def plays(*turns: str) -> ScriptedClient:
    def policy(request: ChatRequest) -> str:
        return f"<{request.text}>" if request.is_subcall else turns[min(request.turn, len(turns) - 1)]

    return ScriptedClient(policy, model="m")


async def collect(rlm: RLM) -> tuple[list[events.Event], RLMError | None]:
    """Returns the events of a stream, and the error that it ends with."""
    seen: list[events.Event] = []
    try:
        async for event in rlm.stream("text", "What?"):
            seen.append(event)  # noqa: PERF401 (the events before an error are needed)
    except RLMError as error:
        return seen, error
    return seen, None


async def test_the_events_of_a_run_come_in_order_and_end_with_the_completion() -> None:
    turns = [repl_block("print(llm_query_batched(['a', 'b']))"), FINISH]
    async with RLM(client=plays(*turns)) as rlm:
        seen = [event async for event in rlm.stream("text", "What?")]
    assert [event.type for event in seen] == [
        *("run_start", "turn_start", "reply", "cell_start", "batch_start", "subcall", "subcall"),
        *("batch_end", "cell", "turn", "turn_start", "reply", "cell_start", "cell", "turn", "run_end"),
        "completed",
    ]
    last = seen[-1]
    assert isinstance(last, events.Completed)
    assert last.completion.response == "done"
    assert {event.run for event in seen} == {last.run}


async def test_the_start_of_a_child_run_names_its_sub_call() -> None:
    def policy(request: ChatRequest) -> str:
        child = "Context: a str of 5 " in request.messages[1]["content"]
        return FINISH if child or request.turn else repl_block("rlm_query('piece')")

    async with RLM(client=ScriptedClient(policy, model="m"), max_depth=2) as rlm:
        seen = [event async for event in rlm.stream("the whole", "What?")]
    starts = [event for event in seen if isinstance(event, events.RunStart)]
    calls = [event for event in seen if isinstance(event, events.Subcall)]
    assert [(start.depth, start.parent) for start in starts] == [(0, None), (1, starts[0].run)]
    assert starts[1].call == calls[0].call
    assert calls[0].request is None
    assert starts[0].models == {"m": {"model": "m", "provider": "ScriptedClient"}}


async def test_events_come_while_the_run_goes_on() -> None:
    gate = asyncio.Event()

    async def policy(request: ChatRequest) -> str:
        await gate.wait()
        return FINISH

    async with (
        RLM(client=ScriptedClient(policy, model="m")) as rlm,
        contextlib.aclosing(rlm.stream("text", "What?")) as stream,
    ):
        first = [(await anext(stream)).type, (await anext(stream)).type]
        gate.set()
        rest = [event.type async for event in stream]
    assert first == ["run_start", "turn_start"]
    assert rest[-1] == "completed"


async def test_an_error_ends_the_stream_after_its_events() -> None:
    client = ScriptedClient(lambda request: Fault(503), model="m")
    async with RLM(client=client) as rlm:
        seen, error = await collect(rlm)
    assert [event.type for event in seen] == ["run_start", "turn_start", "reply", "run_end"]
    assert isinstance(seen[2], events.Reply)
    assert seen[2].error_type == "ModelUnavailableError"
    assert isinstance(error, ModelUnavailableError)
    assert error.completion is not None


async def test_leaving_a_stream_cancels_the_run() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def policy(request: ChatRequest) -> str:
        asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    async with RLM(client=ScriptedClient(policy, model="m")) as rlm:
        stream = rlm.stream("text", "What?")
        async for event in stream:
            if event.type == "turn_start":
                break
        await asked.wait()
        await stream.aclose()
    assert cancelled.is_set()


async def test_a_task_that_is_cancelled_while_its_stream_ends_is_cancelled() -> None:
    begun, ending, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await go_on.wait()

    rlm = RLM(client=plays(repl_block("stubborn()")), custom_tools={"stubborn": stubborn})
    seen = []

    async def watch() -> str:
        async with contextlib.aclosing(rlm.stream("text", "What?")) as stream:
            async for event in stream:
                seen.append(event.type)
                if event.type == "cell_start":
                    await begun.wait()
                    break
        return "went on"

    watching = asyncio.ensure_future(watch())
    await ending.wait()
    watching.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert seen[-1] == "cell_start"


async def test_a_limit_has_an_event() -> None:
    async with RLM(client=plays(repl_block("while True: pass")), max_timeout=0.3) as rlm:
        seen, error = await collect(rlm)
    assert isinstance(error, TimeoutExceededError)
    limits = [event for event in seen if isinstance(event, events.LimitReached)]
    assert [limit.error_type for limit in limits] == ["TimeoutExceededError"]


async def test_a_token_cancels_a_running_cell() -> None:
    token = CancelToken()
    code = "answer['content'] = 'so far'\nllm_query('go')\nwhile True: pass"

    def policy(request: ChatRequest) -> str:
        if not request.is_subcall:
            return repl_block(code)
        threading.Timer(0.1, token.cancel).start()
        return "ok"

    async with RLM(client=ScriptedClient(policy, model="m")) as rlm:
        with pytest.raises(CancellationError) as caught:
            await rlm.acompletion("text", "What?", cancel=token)
        assert caught.value.partial_answer == "so far"
        assert caught.value.completion is not None
        assert caught.value.completion.stop is StopReason.CANCELLED
        again = plays(FINISH)
    async with RLM(client=again) as rlm:
        with pytest.raises(CancellationError):
            await rlm.acompletion("text", "What?", cancel=token)  # the token stays cancelled
    assert again.requests == []


def test_a_token_works_across_threads() -> None:
    token = CancelToken()
    started = threading.Event()

    async def policy(request: ChatRequest) -> str:
        started.set()
        await asyncio.Event().wait()
        return ""

    def cancel() -> None:
        started.wait()
        token.cancel()
        token.cancel()

    threading.Thread(target=cancel).start()
    with RLM(client=ScriptedClient(policy, model="m")) as rlm, pytest.raises(CancellationError):
        rlm.completion("text", "What?", cancel=token)


async def test_callbacks_are_called_and_may_fail() -> None:
    told: list[tuple[object, ...]] = []

    def broken(*args: object) -> None:
        told.append(("iteration_start", *args))
        raise RuntimeError("a callback that fails")

    async with RLM(
        client=plays(repl_block("llm_query('a piece')"), FINISH),
        on_subcall_start=lambda *args: told.append(("subcall_start", *args)),
        on_subcall_complete=lambda depth, model, _, error: told.append(
            ("subcall_complete", depth, model, error)
        ),
        on_iteration_start=broken,
        on_iteration_complete=lambda depth, turn, _: told.append(("iteration_complete", depth, turn)),
    ) as rlm:
        await rlm.acompletion("text", "What?")
    assert told == [
        ("iteration_start", 0, 1),
        ("subcall_start", 1, "m", "a piece"),
        ("subcall_complete", 1, "m", None),
        ("iteration_complete", 0, 1),
        ("iteration_start", 0, 2),
        ("iteration_complete", 0, 2),
    ]


@pytest.mark.parametrize(
    ("code", "options", "errors"),
    [
        ("llm_query_batched(['a piece'] * 5)", {"max_subcalls": 2}, {None: 2, "LimitError": 3}),
        ("rlm_query_batched(['a piece'] * 3)", {"max_subcalls": 0, "max_depth": 2}, {"LimitError": 3}),
        ("llm_query_batched(['a piece'] * 3, model='none')", {}, {"ModelNotFoundError": 3}),
        ("llm_query_batched(['a piece', 5, None])", {}, {None: 1, "ContextError": 2}),
    ],
)
async def test_a_sub_call_that_is_refused_has_an_event_and_callbacks(
    code: str, options: dict[str, Any], errors: dict[str | None, int]
) -> None:
    starts: list[object] = []
    ends: list[object] = []
    async with RLM(
        client=plays(repl_block(code), FINISH),
        on_subcall_start=lambda *args: starts.append(args[2]),
        on_subcall_complete=lambda *args: ends.append(args[3]),
        **options,
    ) as rlm:
        seen, _ = await collect(rlm)
    subcalls = [event for event in seen if isinstance(event, events.Subcall)]
    assert Counter(event.error_type for event in subcalls) == errors
    assert sorted(event.index for event in subcalls) == list(range(len(subcalls)))
    (end,) = (event for event in seen if isinstance(event, events.BatchEnd))
    completion = seen[-1].completion if isinstance(seen[-1], events.Completed) else None
    assert completion is not None
    failed = sum(count for kind, count in errors.items() if kind is not None)
    assert end.failed == completion.stats.subcall_failures == failed
    assert len(completion.iterations[0].code_blocks[0].rlm_calls) == len(subcalls)
    assert len(starts) == len(ends) == len(subcalls)
    assert sum(error is not None for error in ends) == failed
