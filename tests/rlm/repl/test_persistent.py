"""`persistent=True`: completions that share one REPL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlm import RLM
from rlm.cancellation import CancelToken
from rlm.environments import Environment, register_environment
from rlm.environments.local import LocalEnvironment
from rlm.errors import CancellationError, ConfigError, TimeoutExceededError
from rlm.repl.interface import REPL, QueryHandler, SessionSpec
from rlm.testing import ChatRequest, ScriptedClient, finish, repl_block
from rlm.types import StopReason


class Plays:
    """Answers each completion according to the question in its first message."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.requests: list[ChatRequest] = []

    def __call__(self, request: ChatRequest) -> str:
        self.requests.append(request)
        if request.is_subcall:
            return f"<{request.text}>"
        first = request.messages[1]["content"]
        return next(reply for name, reply in self.answers.items() if f"Question: {name}\n" in first)


async def test_a_completion_finds_the_variables_of_earlier_ones() -> None:
    model = Plays(
        one=finish("str(x)", "x = len(context)"),
        two=finish("(x, context, context_0, context_1, answer['content'], answer['ready'])"),
        three=finish("[(h[1]['role'], h[-1]['content']) for h in history]"),
    )
    async with RLM(client=ScriptedClient(model, model="m"), persistent=True) as rlm:
        assert (await rlm.acompletion("first", "one")).response == "5"
        second = await rlm.acompletion(["second"], "two")
        assert second.response == "(5, ['second'], 'first', ['second'], '', False)"
        third = await rlm.acompletion("third", "three")
        assert third.response == repr([("user", "5"), ("user", second.response)])
    told = model.requests[1].messages[1]["content"]
    assert "completion 2 in this REPL" in told
    assert "`context_1`" in told


async def test_sub_calls_and_tools_belong_to_the_completion_that_runs() -> None:
    model = Plays(one=finish("llm_query('a')"), two=finish("llm_query(double('b'))"))
    rlm = RLM(
        client=ScriptedClient(model, model="m"),
        persistent=True,
        custom_tools={"double": lambda text: text * 2},
    )
    async with rlm:
        assert (await rlm.acompletion("", "one")).response == "<a>"
        second = await rlm.acompletion("", "two")
    assert second.response == "<bb>"
    assert second.stats.subcalls == 1
    assert second.iterations[0].code_blocks[0].rlm_calls[0].prompt_head == "bb"


async def test_completions_wait_for_each_other() -> None:
    model = Plays(
        one=finish("'one'", "import time; time.sleep(0.2); x = 1"),
        two=finish("x"),
    )
    async with RLM(client=ScriptedClient(model, model="m"), persistent=True) as rlm:
        answers = await asyncio.gather(rlm.acompletion("", "one"), rlm.acompletion("", "two"))
    assert [answer.response for answer in answers] == ["one", "1"]


async def test_a_completion_that_waits_for_its_turn_can_be_cancelled() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    model = Plays(one=finish("'one'", "wait()"), two=finish("2"))
    rlm = RLM(client=ScriptedClient(model, model="m"), persistent=True, custom_tools={"wait": wait})
    async with rlm:
        first = asyncio.ensure_future(rlm.acompletion("", "one"))
        await begun.wait()
        token = CancelToken()
        second = asyncio.ensure_future(rlm.acompletion(["x"], "two", cancel=token))
        asyncio.get_running_loop().call_soon(token.cancel)
        with pytest.raises(CancellationError) as caught:
            await second
        assert not first.done()
        completion = caught.value.completion
        assert completion is not None
        assert completion.stop is StopReason.CANCELLED
        assert completion.to_dict()["prompt"]["kind"] == "list"
        go_on.set()
        assert (await first).response == "one"
        assert (await rlm.acompletion("", "two")).response == "2"


async def test_a_completion_that_fails_leaves_the_repl_to_the_next() -> None:
    model = Plays(one=repl_block("x = 7\nwhile True: pass"), two=finish("(x, context_0)"))
    async with RLM(client=ScriptedClient(model, model="m"), persistent=True, max_timeout=0.5) as rlm:
        with pytest.raises(TimeoutExceededError):
            await rlm.acompletion("first", "one")
        assert (await rlm.acompletion("second", "two")).response == "(7, 'first')"


async def test_a_worker_that_died_is_replaced_with_all_contexts_and_histories() -> None:
    model = Plays(one=finish("1"), two=finish("(context_0, context_1, len(history), 'x' in globals())"))
    model.answers["three"] = (
        repl_block("x = 1\nimport os; os._exit(3)")
        + "\n"
        + finish("(context_0, context_1, len(history), 'x' in globals())")
    )
    async with RLM(client=ScriptedClient(model, model="m"), persistent=True, max_iterations=1) as rlm:
        await rlm.acompletion("first", "one")
        died = await rlm.acompletion("second", "three")
        assert died.iterations[0].code_blocks[0].error
        completion = await rlm.acompletion("third", "two")
    assert completion.response == "('first', 'second', 2, False)"


class _Announced:
    """A REPL that sets an event when an extension begins."""

    def __init__(self, repl: REPL, begun: asyncio.Event) -> None:
        self._repl = repl
        self._begun = begun
        self.execute, self.interrupt, self.close = repl.execute, repl.interrupt, repl.close

    async def extend(self, *arguments: Any, **options: Any) -> None:
        self._begun.set()
        await self._repl.extend(*arguments, **options)


class _Place(Environment):
    def __init__(self, begun: asyncio.Event) -> None:
        self._begun = begun

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> REPL:
        return _Announced(await LocalEnvironment().open(spec, on_query), self._begun)


async def test_a_context_in_flight_when_its_completion_was_cancelled_counts() -> None:
    begun = asyncio.Event()
    register_environment("announced", lambda: _Place(begun))
    model = Plays(one=finish("1"), three=finish("sorted(n for n in globals() if n[:8] == 'context_')"))
    rlm = RLM(client=ScriptedClient(model, model="m"), environment="announced", persistent=True)
    async with rlm:
        await rlm.acompletion("first", "one")
        second = asyncio.ensure_future(rlm.acompletion("second", "two"))
        await begun.wait()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        third = await rlm.acompletion("third", "three")
    assert third.response == "['context_0', 'context_1', 'context_2']"
    assert "completion 3 in this REPL" in third.messages[1]["content"]


def test_completions_from_any_thread_share_the_repl_until_it_is_closed() -> None:
    model = Plays(one=finish("'one'", "x = 1"), two=finish("x"))
    with RLM(client=ScriptedClient(model, model="m"), persistent=True) as rlm:
        rlm.completion("", "one")
        assert rlm.completion("", "two").response == "1"
    with pytest.raises(ConfigError, match="closed"):
        rlm.completion("", "one")


def test_another_event_loop_is_refused() -> None:
    model = Plays(one=finish("1"))
    with RLM(client=ScriptedClient(model, model="m"), persistent=True) as rlm:
        rlm.completion("", "one")
        with pytest.raises(ConfigError, match="event loop"):
            asyncio.run(_one(rlm))


async def _one(rlm: RLM) -> None:
    await rlm.acompletion("", "one")
