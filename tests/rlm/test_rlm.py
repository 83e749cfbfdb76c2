"""Whole runs: the engine, a scripted model, and the real REPL."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rlm import RLM, Context
from rlm.errors import (
    ConfigError,
    ContextError,
    ContextLengthError,
    ErrorThresholdExceededError,
    ModelUnavailableError,
    TimeoutExceededError,
    TokenLimitExceededError,
)
from rlm.testing import FINISH, ChatRequest, Fault, Reply, ScriptedClient, finish, repl_block
from rlm.types import RLMChatCompletion, StopReason, Usage

Turns = list[str | Reply | Fault]


class Model:
    """A root model that replies with `turns`, and a sub-model that replies with `sub(prompt)`."""

    def __init__(
        self, turns: Turns, sub: Callable[[str], str | Reply | Fault] = lambda text: f"<{text}>"
    ) -> None:
        self.turns = turns
        self.sub = sub
        self.root_requests: list[list[Any]] = []
        self.sub_requests: list[str] = []

    def __call__(self, request: ChatRequest) -> str | Reply | Fault:
        if not request.is_subcall:
            self.root_requests.append(list(request.messages))
            return self.turns[min(request.turn, len(self.turns) - 1)]
        self.sub_requests.append(request.text)
        return self.sub(request.text)


async def run(
    model: Model, prompt: Any = "some text", question: str | None = "What?", **options: Any
) -> RLMChatCompletion:
    async with RLM(client=ScriptedClient(model, model="root"), **options) as rlm:
        return await rlm.acompletion(prompt, question)


def observation(completion: RLMChatCompletion, turn: int = 1) -> str:
    return completion.iterations[turn - 1].observation


async def test_a_run_goes_from_the_question_to_the_answer() -> None:
    model = Model([repl_block("print(len(context), context[:4])"), FINISH])
    completion = await run(model, "x" * 1000)
    assert completion.response == "done"
    assert completion.stop is StopReason.ANSWERED
    assert completion.error is None
    assert completion.root_model == "root"
    assert observation(completion) == "Output:\n1000 xxxx\n\nTurn 2/30"
    assert completion.stats.turns == 2
    assert completion.stats.cells == 2
    assert completion.stats.answered
    assert not completion.stats.forced_answer
    assert completion.usage_summary.total_calls == 2


async def test_the_history_is_append_only_and_alternates() -> None:
    model = Model([repl_block("print(1)"), "no code here", repl_block("1/0"), FINISH])
    completion = await run(model)
    for earlier, later in zip(model.root_requests, model.root_requests[1:], strict=False):
        assert later[: len(earlier)] == earlier
        assert len(later) == len(earlier) + 2
    roles = [message["role"] for message in completion.messages]
    assert roles == ["system", *["user", "assistant"] * 4]
    assert completion.messages[2]["content"] == model.turns[0]


async def test_the_first_message_says_question_context_and_turn() -> None:
    model = Model([FINISH])
    await run(model, ["a", "b"], "How many?", user_prologue="Be {brief}.", max_iterations=7)
    first = model.root_requests[0][1]["content"]
    assert first.startswith("Be {brief}.\n\nQuestion: How many?")
    assert "a list of 2 items" in first
    assert first.endswith("Turn 1/7")


async def test_braces_in_a_system_prompt_are_text() -> None:
    model = Model([FINISH])
    await run(model, custom_system_prompt='Use {"a": 1} and {x}')
    assert model.root_requests[0][0]["content"] == 'Use {"a": 1} and {x}'


async def test_the_orchestrator_advice_can_be_left_out() -> None:
    model, plain = Model([FINISH]), Model([FINISH])
    await run(model)
    await run(plain, orchestrator=False)
    with_advice, without = (m.root_requests[0][0]["content"] for m in (model, plain))
    assert with_advice.startswith(without)
    assert len(with_advice) > len(without)


async def test_several_blocks_run_in_order_until_the_answer() -> None:
    both = repl_block("a = 1\nprint('one')") + "\nand\n" + repl_block("print(a + 1)")
    completion = await run(Model([both, f"{FINISH}\n{repl_block('print(1)')}"]))
    assert observation(completion).startswith("Output of block 1:\none\n\nOutput of block 2:\n2\n")
    assert completion.stats.cells == 3


async def test_a_reply_without_code_gets_an_observation_that_says_so() -> None:
    completion = await run(Model(["The answer is 4.", "```python\nprint(1)\n```", Reply(""), FINISH]))
    assert "no ```repl block" in observation(completion, 1)
    assert "only ```repl blocks are run" in observation(completion, 2)
    assert "empty" in observation(completion, 3)
    assert completion.response == "done"


async def test_a_truncated_reply_is_counted_and_its_open_block_not_run() -> None:
    cut = Reply("```repl\nanswer['content'] = 'half", finish_reason="length")
    completion = await run(Model([cut, FINISH]))
    assert completion.stats.truncated == 1
    assert "cut off" in observation(completion)
    assert completion.response == "done"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('answer["content"] = "x"; answer["ready"] = True', "x"),
        ('answer.update(content="x", ready=True)', "x"),
        ('answer |= {"content": "x", "ready": True}', "x"),
        ('answer["ready"] = True; answer["content"] = "x"', "x"),
        ('answer = {"content": "x", "ready": True}', "x"),
        ('answer = {"content": "x", "ready": True}; 1/0', "x"),
        ('answer["content"] = 42; answer["ready"] = 1', "42"),
        ('answer["content"] = ["a", 1]; answer["ready"] = True', "['a', 1]"),
        ('answer["content"] = 0; answer["ready"] = True', "0"),
        ('def f():\n    answer["content"] = "x"\n    answer["ready"] = True\nf()', "x"),
    ],
)
async def test_the_answer_can_be_set_in_many_ways(code: str, expected: str) -> None:
    completion = await run(Model([repl_block(code)]), max_iterations=1)
    assert completion.stop is StopReason.ANSWERED
    assert completion.response == expected


async def test_ready_without_content_is_not_the_end() -> None:
    ready = repl_block('answer["ready"] = True')
    completion = await run(Model([ready, repl_block('answer["content"] = "late"')]))
    assert 'answer["content"] is empty' in observation(completion)
    assert completion.response == "late"
    assert completion.stats.turns == 2


async def test_an_answer_that_was_rebound_to_a_str_is_noted_and_counts_as_content() -> None:
    completion = await run(Model([repl_block('answer = "42"'), repl_block('answer["ready"] = True')]))
    assert "answer" in observation(completion)
    assert completion.response == "42"


async def test_the_model_is_asked_once_more_after_its_last_turn() -> None:
    model = Model([repl_block("print(1)"), repl_block("print(2)"), "<think>hm</think>\nlabel: spam "])
    completion = await run(model, max_iterations=2)
    assert completion.response == "label: spam"
    assert completion.stop is StopReason.MAX_ITERATIONS
    assert completion.stats.forced_answer
    assert not completion.stats.answered
    assert completion.stats.turns == 2
    assert len(model.root_requests) == 3
    last = model.root_requests[-1][-1]
    assert last["role"] == "user"
    assert "no turns left" in last["content"]
    assert "Output:\n2" in last["content"]
    assert "the last one" in model.root_requests[1][-1]["content"]


async def test_an_empty_last_reply_falls_back_on_the_answer_of_the_code() -> None:
    completion = await run(Model([repl_block('answer["content"] = "draft"'), Reply("")]), max_iterations=1)
    assert completion.response == "draft"


async def test_a_batch_is_answered_in_order_and_booked() -> None:
    code = "r = llm_query_batched([f'p{i}' for i in range(50)])\nprint(r == [f'<p{i}>' for i in range(50)])"
    completion = await run(Model([repl_block(code), FINISH]), max_concurrent_subcalls=7)
    assert observation(completion).startswith("Output:\nTrue\n")
    assert completion.stats.subcalls == 50
    assert completion.stats.subcall_failures == 0
    assert completion.usage_summary.total_calls == 52
    assert completion.stats.sub_input_tokens > 0
    assert len(completion.iterations[0].code_blocks[0].rlm_calls) == 50


async def test_a_failed_item_does_not_affect_its_batch() -> None:
    def sub(text: str) -> str | Fault:
        return (
            Fault(status=400, body={"error": {"message": "no such thing"}}) if text == "bad" else text.upper()
        )

    code = (
        "r = llm_query_batched(['a', 'bad', 'c'])\n"
        "print(r[0], r[2], isinstance(r[1], SubcallError), isinstance(r[0], SubcallError))\nprint(r[1])"
    )
    completion = await run(Model([repl_block(code), FINISH], sub))
    lines = observation(completion).splitlines()
    assert lines[1] == "A C True False"
    assert lines[2].startswith("Error: ")
    assert "no such thing" in lines[2]
    assert completion.stats.subcalls == 3
    assert completion.stats.subcall_failures == 1


@pytest.mark.parametrize("prompt", ["5", "None", "[]", "[1]", "{'a': 1}", "[{'role': 'x', 'content': 'y'}]"])
async def test_a_prompt_of_the_wrong_kind_is_a_failed_item(prompt: str) -> None:
    completion = await run(Model([repl_block(f"print(llm_query({prompt}))"), FINISH]))
    assert "Error: " in observation(completion)


async def test_a_prompt_may_be_a_list_of_messages() -> None:
    code = "print(llm_query([{'role': 'user', 'content': 'a'}, {'role': 'user', 'content': 'b'}]))"
    completion = await run(Model([repl_block(code), FINISH]))
    assert "<b>" in observation(completion)


async def test_an_unknown_model_is_an_error_in_the_code() -> None:
    completion = await run(Model([repl_block("print(llm_query('x', model='gpt-9'))"), FINISH]))
    assert "no model named 'gpt-9'" in observation(completion)
    assert "root" in observation(completion)


async def test_sub_models_answer_by_default_and_by_name() -> None:
    root = Model(
        [
            repl_block("print(llm_query('a'), llm_query('b', model='big'), llm_query('c', model='root'))"),
            FINISH,
        ]
    )
    small = ScriptedClient(lambda request: "small", model="small")
    big = ScriptedClient(lambda request: "big", model="big")
    async with RLM(client=ScriptedClient(root, model="root"), other_clients=[small, big]) as rlm:
        completion = await rlm.acompletion("text", "What?")
    assert observation(completion).startswith("Output:\nsmall big <c>")
    assert {m: s.total_calls for m, s in completion.usage_summary.model_usage_summaries.items()} == {
        "root": 3,
        "small": 1,
        "big": 1,
    }


async def test_plain_sub_calls_are_bounded_by_max_concurrent_queries() -> None:
    running = peak = 0

    async def policy(request: ChatRequest) -> str:
        nonlocal running, peak
        if not request.is_subcall:
            return FINISH if request.turn else repl_block("r = llm_query_batched(['p'] * 40)")
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001)
        running -= 1
        return "ok"

    async with RLM(client=ScriptedClient(policy, model="m"), max_concurrent_queries=5) as rlm:
        await rlm.acompletion("text", "What?")
    assert peak == 5


async def test_child_runs_are_bounded_by_max_concurrent_subcalls() -> None:
    running = peak = 0

    async def policy(request: ChatRequest) -> str:
        nonlocal running, peak
        if "context: a str of 4 " not in request.messages[1]["content"].lower():
            return FINISH if request.turn else repl_block("r = rlm_query_batched(['text'] * 6)")
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.05)
        running -= 1
        return FINISH

    client = ScriptedClient(policy, model="m")
    async with RLM(client=client, max_depth=2, max_concurrent_subcalls=2) as rlm:
        completion = await rlm.acompletion("the whole", "What?")
    assert completion.stats.subcalls == 6
    assert peak == 2


async def test_threads_of_the_code_can_query_at_once() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(list(pool.map(llm_query, 'abcdefgh')))"
    )
    completion = await run(Model([repl_block(code), FINISH]))
    assert observation(completion).startswith(f"Output:\n{[f'<{c}>' for c in 'abcdefgh']}")


async def test_child_runs_have_a_repl_of_their_own() -> None:
    def policy(request: ChatRequest) -> str:
        first = request.messages[1]["content"] if len(request.messages) > 1 else ""
        if request.is_subcall:
            return f"plain:{request.messages[-1]['content']}"
        if "Question: Top?" in first:
            return FINISH if request.turn else repl_block("x = 5\nprint(rlm_query('inner text'), x)")
        return finish("f'child saw {x}'", "x = rlm_query(context)")

    async with RLM(client=ScriptedClient(policy, model="m"), max_depth=2) as rlm:
        completion = await rlm.acompletion("outer", "Top?")
    assert observation(completion).startswith("Output:\nchild saw plain:inner text 5")
    assert completion.stats.subcalls == 2
    assert completion.stats.turns == 2


async def test_rlm_query_is_a_plain_call_at_depth_one() -> None:
    completion = await run(
        Model([repl_block("print(rlm_query('x'), rlm_query_batched(['y', 'z']))"), FINISH])
    )
    assert observation(completion).startswith("Output:\n<x> ['<y>', '<z>']")


async def test_a_child_without_an_answer_is_a_failed_item() -> None:
    def policy(request: ChatRequest) -> str | Reply:
        if "Question: Top?" in request.messages[1]["content"]:
            return (
                FINISH if request.turn else repl_block("r = rlm_query('inner')\nprint(type(r).__name__, r)")
            )
        return Reply("")

    async with RLM(client=ScriptedClient(policy, model="m"), max_depth=2, max_iterations=2) as rlm:
        completion = await rlm.acompletion("outer", "Top?")
    assert "SubcallError Error: the child run ended without an answer" in observation(completion)


async def test_deep_recursion_ends_at_max_depth() -> None:
    def policy(request: ChatRequest) -> str:
        if request.is_subcall:
            return "leaf"
        return finish("'(' + rlm_query('deeper') + ')'")

    async with RLM(client=ScriptedClient(policy, model="m"), max_depth=4) as rlm:
        completion = await rlm.acompletion("outer", "Top?")
    assert completion.response == "((((leaf))))"
    assert completion.stats.subcalls == 4


async def test_depth_zero_is_one_plain_call() -> None:
    async with RLM(client=ScriptedClient(lambda r: r.messages[0]["content"], model="m"), max_depth=0) as rlm:
        completion = await rlm.acompletion("text", "What?")
        assert completion.response == "text\n\nWhat?"
        assert isinstance(completion, RLMChatCompletion)
        with pytest.raises(ContextError, match="max_depth=0"):
            await rlm.acompletion(["a"], "What?")


async def test_max_timeout_interrupts_a_cell() -> None:
    model = Model([repl_block("answer['content'] = 'so far'\nwhile True: pass")])
    with pytest.raises(TimeoutExceededError) as caught:
        await run(model, max_timeout=0.7)
    assert caught.value.partial_answer == "so far"
    assert caught.value.completion is not None
    assert caught.value.completion.stop is StopReason.TIMEOUT
    assert caught.value.completion.stats.turns == 1


async def test_max_timeout_interrupts_a_model_call() -> None:
    async def policy(request: ChatRequest) -> str:
        await asyncio.Event().wait()
        return "never"

    async with RLM(client=ScriptedClient(policy, model="m"), max_timeout=0.2) as rlm:
        with pytest.raises(TimeoutExceededError) as caught:
            await rlm.acompletion("text", "What?")
    assert caught.value.partial_answer is None


async def test_max_timeout_interrupts_sub_calls_at_any_depth() -> None:
    async def policy(request: ChatRequest) -> str:
        if request.is_subcall:
            await asyncio.Event().wait()
        return repl_block("print(rlm_query('deeper'))")

    async with RLM(client=ScriptedClient(policy, model="m"), max_depth=3, max_timeout=1.0) as rlm:
        with pytest.raises(TimeoutExceededError):
            await rlm.acompletion("text", "What?")


async def test_an_answer_is_returned_although_a_limit_was_reached() -> None:
    found = repl_block('answer.update(content="found", ready=True)\nwhile True: pass')
    completion = await run(Model([found]), max_timeout=0.7)
    assert completion.response == "found"
    assert completion.stop is StopReason.ANSWERED
    assert completion.error is not None
    assert "max_timeout" in completion.error


async def test_a_reply_that_crosses_the_token_limit_still_runs() -> None:
    reply = Reply(FINISH, usage=Usage(9_000, 2_000))  # more than any estimate
    completion = await run(Model([reply]), max_tokens=10_000)
    assert completion.response == "done"
    assert "max_tokens" in (completion.error or "")


async def test_a_prompt_that_exceeds_the_rest_of_the_limit_is_not_sent() -> None:
    model = Model([FINISH])
    with pytest.raises(TokenLimitExceededError, match="the next prompt has about"):
        await run(model, max_tokens=10)
    assert model.root_requests == []


async def test_the_token_limit_holds_for_the_whole_tree() -> None:
    code = "answer['content'] = 'partial'\nfor i in range(1000):\n    llm_query('word ' * 200)"
    model = Model([repl_block(code)], lambda text: "word " * 200)
    with pytest.raises(TokenLimitExceededError) as caught:
        await run(model, max_tokens=5_000)
    assert caught.value.partial_answer == "partial"
    assert caught.value.completion is not None
    assert 1 <= len(model.sub_requests) < 40
    assert caught.value.completion.stop is StopReason.TOKEN_LIMIT


async def test_max_errors_counts_cells_in_a_row() -> None:
    turns: Turns = [repl_block("1/0"), repl_block("1"), repl_block("1/0"), repl_block("[][1]")]
    with pytest.raises(ErrorThresholdExceededError) as caught:
        await run(Model(turns), max_errors=2)
    assert caught.value.last_error == "IndexError: list index out of range"
    assert caught.value.completion is not None
    assert caught.value.completion.stats.turns == 4


async def test_a_model_that_fails_for_good_ends_the_run_with_the_best_answer() -> None:
    model = Model([repl_block("answer['content'] = 'half'"), Fault(status=503)])
    with pytest.raises(ModelUnavailableError) as caught:
        await run(model)
    assert caught.value.partial_answer == "half"
    assert caught.value.completion is not None
    assert caught.value.completion.stop is StopReason.ERROR


async def test_a_stopped_rollout_ends_with_the_best_answer() -> None:
    stopped = Fault(status=400, body={"error": "rollout stopped"})
    completion = await run(Model([repl_block("answer['content'] = 'half'"), stopped]))
    assert completion.stop is StopReason.STOPPED
    assert completion.response == "half"


async def test_a_rollout_stopped_in_a_sub_call_ends_the_run() -> None:
    stopped = Fault(status=400, body={"error": "rollout stopped"})
    model = Model(
        [repl_block("answer['content'] = 'half'\nr = llm_query_batched(['a'] * 20)"), FINISH],
        lambda _: stopped,
    )
    completion = await run(model)
    assert completion.stop is StopReason.STOPPED
    assert completion.response == "half"
    assert len(model.root_requests) == 1


async def test_a_prompt_over_the_window_is_not_sent() -> None:
    model = Model([repl_block("print(llm_query('word ' * 50_000))\nprint(llm_query('short'))"), FINISH])
    async with RLM(client=ScriptedClient(model, model="m", max_model_len=20_000)) as rlm:
        completion = await rlm.acompletion("text", "What?")
    assert "window" in observation(completion)
    assert "<short>" in observation(completion)
    assert model.sub_requests == ["short"]
    big = Model([repl_block("print('word ' * 4000)"), repl_block("print('word ' * 4000)")])
    async with RLM(client=ScriptedClient(big, model="m", max_model_len=6_000)) as rlm:
        with pytest.raises(ContextLengthError) as caught:
            await rlm.acompletion("text", "What?")
    assert caught.value.completion is not None
    assert caught.value.completion.stop is StopReason.CONTEXT_LENGTH


async def test_a_cell_that_exits_does_not_end_the_run() -> None:
    completion = await run(
        Model([repl_block("import sys\nsys.exit(3)"), repl_block("import os\nos._exit(1)"), FINISH])
    )
    assert completion.response == "done"
    assert completion.stats.cell_errors == 2


async def test_equal_replies_get_equal_observations() -> None:
    code = "import random\nprint(hash('x'), {f'k{i}' for i in range(9)}, len(context))\nd = {}\nd[1]"
    runs = [await run(Model([repl_block(code), FINISH]), {"a": [1, 2]}) for _ in range(2)]
    assert runs[0].messages == runs[1].messages


async def test_sampling_arguments_reach_their_calls() -> None:
    seen: list[tuple[str, Any]] = []

    def policy(request: ChatRequest) -> str:
        root = not request.is_subcall
        seen.append(("root" if root else "sub", dict(request.sampling)))
        return FINISH if seen[0] != seen[-1] or not root else repl_block("llm_query('x')")

    turns = Model([repl_block("llm_query('x')"), FINISH])

    def recording(request: ChatRequest) -> str | Reply | Fault:
        policy(request)
        return turns(request)

    client = ScriptedClient(recording, model="m")
    async with RLM(
        client=client, sampling_args={"temperature": 0.5}, sub_sampling_args={"max_tokens": 9}
    ) as rlm:
        await rlm.acompletion("text", "What?")
    assert seen == [
        ("root", {"temperature": 0.5}),
        ("sub", {"max_tokens": 9}),
        ("root", {"temperature": 0.5}),
    ]


async def test_many_runs_at_once_share_a_context() -> None:
    context = Context("line\n" * 10_000)
    client = ScriptedClient(Model([repl_block("print(context.count('line'))"), FINISH]), model="m")
    async with RLM(client=client) as rlm:
        completions = await asyncio.gather(*(rlm.acompletion(context, "What?") for _ in range(16)))
    assert {observation(c) for c in completions} == {"Output:\n10000\n\nTurn 2/30"}


async def test_cancelling_a_run_stops_its_cell() -> None:
    reached = asyncio.Event()

    def sub(text: str) -> str:
        reached.set()
        return "ok"

    model = Model([repl_block("llm_query('x')\nwhile True: pass")], sub)
    async with RLM(client=ScriptedClient(model, model="m")) as rlm:
        task = asyncio.create_task(rlm.acompletion("text", "What?"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_sub_call_that_a_limit_stops_counts_as_failed_once() -> None:
    async def policy(request: ChatRequest) -> str:
        if not request.is_subcall:
            return repl_block("llm_query_batched(['quick'] * 3 + ['slow'] * 7)")
        if request.text == "slow":
            await asyncio.Event().wait()
        return "ok"

    async with RLM(client=ScriptedClient(policy), max_timeout=1.0) as rlm:
        with pytest.raises(TimeoutExceededError) as caught:
            await rlm.acompletion("text", "What?")
    assert caught.value.completion is not None
    stats = caught.value.completion.stats
    assert (stats.subcalls, stats.subcall_failures) == (10, 7)


@pytest.mark.parametrize("by", ["limit", "task"])
async def test_a_run_can_be_stopped_while_its_cell_runs_c_code(by: str) -> None:
    """`interrupt_grace` holds for a cell at its time limit. A run that ends needs no grace period."""
    reached = asyncio.Event()

    def sub(text: str) -> str:
        reached.set()
        return "ok"

    model = Model([repl_block("llm_query('x')\nsum(range(10**12))")], sub)
    client = ScriptedClient(model, model="m")
    limit = 1.0 if by == "limit" else None
    async with RLM(client=client, max_timeout=limit, environment_kwargs={"interrupt_grace": 1e6}) as rlm:
        task = asyncio.create_task(rlm.acompletion("text", "What?"))
        await reached.wait()
        if by == "task":
            task.cancel()
        with pytest.raises(TimeoutExceededError if by == "limit" else asyncio.CancelledError):
            await task


def test_completion_works_from_any_thread() -> None:
    rlm = RLM(client=ScriptedClient(Model([repl_block("print(context)"), FINISH]), model="m"))
    results: dict[int, str] = {}

    def work(number: int) -> None:
        results[number] = observation(rlm.completion(f"context {number}", "What?"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"Output:\ncontext {n}\n\nTurn 2/30" for n in range(6)}
    with rlm:
        pass
    with pytest.raises(ConfigError, match="closed"):
        rlm.completion("x")


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_rlm_can_be_neither_pickled_nor_copied(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        copied(RLM(client=ScriptedClient(Model([]))))


async def test_a_completion_survives_the_trip_through_json() -> None:
    completion = await run(Model([repl_block("llm_query('x')"), FINISH]), {"k": [1]})
    data = completion.to_dict()
    again = RLMChatCompletion.from_dict(data)
    assert again.to_dict() == data
    assert again.response == "done"
    assert data["prompt"]["kind"] == "dict"
    assert again.stats == completion.stats


@pytest.mark.parametrize("prompt", [None, {1, 2}, object(), 5, [object()], lambda: 0])
async def test_an_input_that_cannot_be_sent_is_refused(prompt: Any) -> None:
    with pytest.raises(ContextError):
        await run(Model([FINISH]), prompt)


@pytest.mark.parametrize("cancel", ["x", threading.Event()])
async def test_cancel_must_be_a_cancel_token(cancel: Any) -> None:
    model = Model([FINISH])
    async with RLM(client=ScriptedClient(model)) as rlm:
        with pytest.raises(ConfigError, match="cancel must be a CancelToken or None"):
            await rlm.acompletion("text", "What?", cancel=cancel)
    assert model.root_requests == []


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_a_context_that_is_closed_during_the_run_costs_no_answer(size: int) -> None:
    context = Context("x" * size)

    def reply(request: ChatRequest) -> str:
        context.close()
        return FINISH

    async with RLM(client=ScriptedClient(reply)) as rlm:
        completion = await rlm.acompletion(context, "?")
    assert completion.response == "done"
    assert completion.to_dict()["prompt"] == {"kind": "str", "size": size, "sha256": None}
