"""Replays of logs: they are equal byte for byte, or end with an error that shows the difference."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from rlm import RLM
from rlm.errors import (
    ErrorThresholdExceededError,
    LogError,
    ModelUnavailableError,
    ReplayError,
    RLMError,
    RolloutStoppedError,
    TokenLimitExceededError,
)
from rlm.events import Event, RunStart
from rlm.logger import RLMLogger, read_log
from rlm.replay import ReplayClient
from rlm.testing import FINISH, Answer, ChatRequest, Fault, Reply, ScriptedClient, finish, repl_block, serve
from rlm.types import RLMChatCompletion, Usage

# Fields that differ between a run and its replay.
CLOCKS = {"time", "seconds", "run", "parent", "batch", "call"}
TIMES = {"model_seconds", "repl_seconds"}


class Model:
    """Plays one list of turns for the root and one for child runs, and answers each sub-call differently."""

    def __init__(self, turns: list[Answer], below: list[Answer] | None = None) -> None:
        self.turns = turns
        self.below = below or []
        self.count = itertools.count(1)

    def __call__(self, request: ChatRequest) -> Answer:
        if not request.is_subcall:
            top = "Question: Top?" in request.messages[1]["content"]
            answer = (self.turns if top else self.below)[request.turn]
            if not isinstance(answer, str):
                return answer
            return answer.replace("NUMBER", str(next(self.count))) if "NUMBER" in answer else answer
        if "fault" in request.text:
            return Fault(400, f"fault {next(self.count)}")
        if "refuse" in request.text:
            return Reply(None, refusal=f"refusal {next(self.count)}")
        # Later prompts are answered sooner: their order in the log differs from the order of the batch.
        index = request.text.rpartition("#")[2]
        delay = 0.03 - 0.01 * int(index) if index.isdigit() else 0.0
        return Reply(f"{request.model}: {next(self.count)}", delay=delay, usage=Usage(7, 3, 0.25, 2))


Play = Callable[..., Any]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Runs a scripted model, replays the log, compares the two and returns the completion of the replay."""

    async def run(
        clients: dict[str, Any], ask: dict[str, Any] | None = None, **options: Any
    ) -> tuple[RLMChatCompletion, list[Event]]:
        logger = RLMLogger(log_dir=tmp_path)
        async with RLM(**clients, logger=logger, **options) as rlm:
            try:
                completion = await rlm.acompletion("some text " * 20, "Top?", **(ask or {}))
            except RLMError as error:
                if error.completion is None:
                    raise
                completion = error.completion
                completion.parsed = error
        assert logger.path is not None
        return completion, read_log(logger.path)

    async def both(model: Model, others: tuple[str, ...] = (), **options: Any) -> RLMChatCompletion:
        clients = {
            "client": ScriptedClient(model, model="root"),
            "other_clients": {
                name: ScriptedClient(model, model=f"{name} at its provider") for name in others
            },
        }
        first, events = await run(clients, **options)
        assert first.metadata is not None
        root, other = ReplayClient.clients(first.metadata["run_metadata"]["log_file"])
        second, again = await run({"client": root, "other_clients": other}, **options)
        assert second.messages == first.messages
        assert [turn.observation for turn in second.iterations] == [
            turn.observation for turn in first.iterations
        ]
        assert (second.response, second.stop, second.error) == (first.response, first.stop, first.error)
        assert type(second.parsed) is type(first.parsed)
        assert second.usage_summary == first.usage_summary
        assert sorted(map(essence, again)) == sorted(map(essence, events))
        return second

    return both


def essence(event: Event) -> str:
    """The part of an event that is equal in a replay."""
    data = {name: value for name, value in event.to_dict().items() if name not in CLOCKS}
    data.pop("models", None)  # the provider differs
    if "stats" in data:
        data["stats"] = {name: value for name, value in data["stats"].items() if name not in TIMES}
    return json.dumps(data, sort_keys=True)


async def test_a_run_with_sub_calls_is_replayed_byte_for_byte(play: Play) -> None:
    model = Model(
        [
            repl_block("print(llm_query('one'))"),
            Reply(
                repl_block("1/0"), reasoning="I think", finish_reason="length", usage=Usage(100, 20, 0.5, 50)
            ),
            repl_block("print(llm_query('one'), NUMBER)"),
            FINISH,
        ]
    )
    completion = await play(model)
    assert completion.iterations[0].observation.startswith("Output:\nroot: 1\n")
    assert completion.iterations[2].observation.startswith("Output:\nroot: 3 2\n")
    assert completion.usage_summary.total_cost == pytest.approx(1.0)


async def test_equal_prompts_of_a_batch_keep_their_own_replies(play: Play) -> None:
    model = Model(
        [repl_block("print(llm_query_batched(['same #0', 'same #1', 'same #2'] + ['same'] * 5))"), FINISH]
    )
    await play(model)


async def test_failed_and_refused_sub_calls_fail_again(play: Play) -> None:
    code = "for reply in llm_query_batched(['fault', 'ok', 'refuse', 'fault']): print(type(reply).__name__, reply)"
    completion = await play(Model([repl_block(code), FINISH]))
    text = completion.iterations[0].observation
    assert text.count("SubcallError Error: ") == 3
    assert "the model refused: refusal" in text


async def test_each_of_several_models_is_replayed(play: Play) -> None:
    code = "print(llm_query('x'), llm_query('x', model='b'), llm_query('x', model='root'), llm_query('x', model='c'))"
    completion = await play(Model([repl_block(code), FINISH]), ("b", "a"))
    text = completion.iterations[0].observation
    assert text.startswith(
        "Output:\nb at its provider: 1 b at its provider: 2 root: 3 Error: there is no model named 'c'"
    )


async def test_child_runs_with_equal_prompts_keep_their_own_replies(play: Play) -> None:
    below: list[Answer] = [
        repl_block("note = llm_query('NUMBER')"),
        finish("f'NUMBER {note}'"),
    ]
    completion = await play(
        Model([repl_block("print(rlm_query_batched(['same'] * 4))"), FINISH], below), ("sub",), max_depth=2
    )
    assert completion.iterations[0].observation.count("sub at its provider") == 4


async def test_a_compaction_happens_at_the_same_turn(tmp_path: Path, play: Play) -> None:
    def long(request: ChatRequest) -> Answer:
        if "write now" in request.text:
            return "what I found out"
        return (
            repl_block("print('word ' * 300)")
            if request.turn < 3 and "notes" not in str(request.messages)
            else FINISH
        )

    logger = RLMLogger(log_dir=tmp_path)
    options: dict[str, Any] = {"compaction": True, "compaction_threshold_pct": 0.35, "max_iterations": 6}
    client = ScriptedClient(long, max_model_len=4000)
    async with RLM(client=client, logger=logger, **options) as rlm:
        first = await rlm.acompletion("text", "Top?")
    assert first.stats.compactions == 1
    assert logger.path is not None
    async with RLM(client=ReplayClient.from_log(logger.path), **options) as rlm:
        second = await rlm.acompletion("text", "Top?")
    assert second.messages == first.messages
    assert second.stats.compactions == 1


async def test_a_run_whose_turns_run_out_is_replayed(play: Play) -> None:
    completion = await play(Model([repl_block("1"), repl_block("2"), "It is 3."]), max_iterations=2)
    assert completion.response == "It is 3."


async def test_an_error_of_the_root_has_the_same_type_and_message(play: Play) -> None:
    completion = await play(Model([repl_block("1"), Fault(503, "gone")]))
    assert isinstance(completion.parsed, ModelUnavailableError)
    assert completion.parsed.status is None
    stopped = await play(Model([repl_block("print(1)"), Fault(400, "Rollout stopped: enough")]))
    assert stopped.parsed is None or isinstance(stopped.parsed, RolloutStoppedError)


async def test_limits_are_reached_again(play: Play) -> None:
    tokens = await play(Model([repl_block("print('x' * 5000)")] * 9), max_tokens=4000)
    assert isinstance(tokens.parsed, TokenLimitExceededError)
    errors = await play(Model([repl_block("1/0")] * 9), max_errors=2)
    assert isinstance(errors.parsed, ErrorThresholdExceededError)


async def test_a_sub_call_that_was_cancelled_with_its_cell_is_cancelled_again(play: Play) -> None:
    def never(request: ChatRequest) -> Answer:
        if not request.is_subcall:
            code = "try:\n    llm_query('x')\nexcept KeyboardInterrupt:\n    print('cut')"
            return [repl_block(code), FINISH][request.turn]
        return Reply("late", delay=30)

    environment = {"cell_timeout": 0.5}
    completion = await play(never, environment_kwargs=environment)
    assert completion.iterations[0].observation.startswith("Output:\ncut\n")


def test_thinking_goes_back_into_the_chat(tmp_path: Path) -> None:
    turns = [repl_block("print(1)"), FINISH]
    logger = RLMLogger(log_dir=tmp_path)
    with serve(lambda request: Reply(turns[request.turn], reasoning=f"thought {request.turn}")) as server:
        options = {"model_name": server.model, "base_url": server.base_url, "echo_reasoning": True}
        with RLM(backend="vllm", backend_kwargs=options, logger=logger) as rlm:
            first = rlm.completion("abc", "Top?")
    assert first.messages[2]["reasoning_content"] == "thought 0"
    assert logger.path is not None
    with RLM(client=ReplayClient.from_log(logger.path)) as rlm:
        assert rlm.completion("abc", "Top?").messages == first.messages


async def test_a_run_with_a_response_format_is_replayed(play: Play) -> None:
    class Count(BaseModel):
        number: int

    turns: list[Answer] = [
        finish("'three'"),
        "still three",
        '{"number": 3}',
    ]
    completion = await play(Model(turns), max_iterations=1, ask={"response_format": Count})
    assert completion.parsed == Count(number=3)


async def test_a_run_without_a_repl_is_replayed(play: Play) -> None:
    completion = await play(lambda request: Reply("plain", reasoning="hm"), max_depth=0)
    assert completion.response == "plain"


async def test_completions_that_share_a_repl_are_replayed(tmp_path: Path) -> None:
    turns = [repl_block("print(llm_query('x'), len(history)); n = 1"), FINISH]
    logger = RLMLogger(log_dir=tmp_path)

    async def both(client: Any, **options: Any) -> list[Any]:
        async with RLM(client=client, persistent=True, **options) as rlm:
            return [(await rlm.acompletion(prompt, "Top?")).messages for prompt in ("abc", "def")]

    first = await both(ScriptedClient(Model(list(turns)), model="root"), logger=logger)
    assert logger.path is not None
    assert await both(ReplayClient.from_log(logger.path)) == first
    second = [event.run for event in read_log(logger.path) if isinstance(event, RunStart)][1]
    with pytest.raises(ReplayError, match="has no reply to a request of 2 messages"):
        await both(ReplayClient.from_log(logger.path, run=second))  # its run is not the first in its REPL


# Runs that differ from the log


async def record(tmp_path: Path, model: Callable[[ChatRequest], Answer], prompts: list[str]) -> Path:
    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(model, model="root"), logger=logger) as rlm:
        for prompt in prompts:
            await rlm.acompletion(prompt, "Top?")
    assert logger.path is not None
    return logger.path


async def again(client: ReplayClient, prompt: str, **options: Any) -> RLMChatCompletion:
    async with RLM(client=client, **options) as rlm:
        return await rlm.acompletion(prompt, "Top?")


async def test_a_different_message_is_an_error_that_shows_the_difference(tmp_path: Path) -> None:
    path = await record(tmp_path, Model([repl_block("print(context)"), FINISH]), ["abc def"])
    with pytest.raises(ReplayError) as caught:
        await again(ReplayClient.from_log(path), "abc xyz")
    message = str(caught.value)
    assert message.startswith(
        f"{path} has no reply to a request of 4 messages to 'root'; the nearest is turn 2 of run "
    )
    assert "differs first in message 4 (user), character 13: 'Output:\\nabc def" in message
    assert "now" in message
    assert "abc xyz" in message


async def test_a_different_prompt_of_a_sub_call_ends_the_run(tmp_path: Path) -> None:
    path = await record(
        tmp_path, Model([repl_block("llm_query(f'read {context}')"), repl_block("pass"), FINISH]), ["abc"]
    )
    with pytest.raises(
        ReplayError,
        match=r"whose prompt had 8 characters and began with 'read abc'; this one has 8 and begins with 'read xyz'",
    ):
        await again(ReplayClient.from_log(path), "xyz")


async def test_a_different_model_or_sampling_is_an_error(tmp_path: Path) -> None:
    path = await record(tmp_path, Model([FINISH]), ["abc"])
    with pytest.raises(ReplayError, match=r"with the same messages: model .* or sampling arguments differ"):
        await again(ReplayClient.from_log(path), "abc", sampling_args={"temperature": 1.0})
    capped = await again(ReplayClient.from_log(path), "abc", sampling_args={"max_tokens": 500})
    assert capped.response == "done"  # a limit on tokens is no part of a request


async def test_a_request_that_comes_more_often_than_in_the_log_is_an_error(tmp_path: Path) -> None:
    path = await record(tmp_path, Model([FINISH]), ["abc"])
    client = ReplayClient.from_log(path)
    assert (await again(client, "abc")).response == "done"
    with pytest.raises(ReplayError, match="fewer times than it came now"):
        await again(client, "abc")


async def test_one_of_several_runs_in_a_log_is_replayed(tmp_path: Path) -> None:
    model = Model([finish("'NUMBER'")])
    path = await record(tmp_path, model, ["abc", "abc", "abc"])
    runs = [event.run for event in read_log(path) if isinstance(event, RunStart)]
    assert (await again(ReplayClient.from_log(path, run=runs[1]), "abc")).response == "2"
    client = ReplayClient.from_log(path)
    assert [(await again(client, "abc")).response for _ in range(3)] == ["1", "2", "3"]
    with pytest.raises(LogError, match=f"no root's run 'x'; its root's runs are {runs[0]}, "):
        ReplayClient.from_log(path, run="x")


def test_a_log_without_a_run_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(LogError, match="holds no run"):
        ReplayClient.from_log(path)


async def test_a_log_that_was_cut_off_is_replayed_up_to_the_cut(tmp_path: Path) -> None:
    path = await record(tmp_path, Model([repl_block("print(1)"), repl_block("print(2)"), FINISH]), ["abc"])
    lines = path.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    second = [number for number, line in enumerate(lines) if '"reply"' in line][1]
    cut.write_text("".join(lines[: second + 1]) + lines[second + 1][:50])
    with pytest.raises(ReplayError, match="a request of 6 messages") as caught:
        await again(ReplayClient.from_log(cut), "abc")
    assert caught.value.completion is not None
    assert [turn.observation.split("\n")[1] for turn in caught.value.completion.iterations] == ["1", "2"]
