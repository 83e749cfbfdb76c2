"""One question over many inputs: order, failures, progress, reading ahead, cancellation, and `resume`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from rlm import RLM
from rlm.cancellation import CancelToken
from rlm.errors import CancellationError, ConfigError, ContextError, LogError, ModelUnavailableError
from rlm.testing import Answer, ChatRequest, Fault, Reply, ScriptedClient, finish, repl_block
from rlm.types import MapInput, MapItem, MapProgress, Usage


class Counter:
    """A root that answers with its context in capitals, and records its requests."""

    def __init__(self, *, price: float | None = None) -> None:
        self.asked: list[str] = []
        self.price = price

    def __call__(self, request: ChatRequest) -> Answer:
        question = request.messages[1]["content"].partition("Question: ")[2].partition("\n")[0]
        self.asked.append(question)
        if question == "fail":
            return Fault(503, "not now")
        code = "answer.update(content=context.upper(), ready=True)"
        return Reply(repl_block(code), usage=Usage(10, 5, self.price))


def responses(items: list[MapItem]) -> list[str | None]:
    return [item.response for item in items]


async def test_results_come_in_the_order_of_the_inputs() -> None:
    running = peak = 0
    gates = {f"input {n}": asyncio.Event() for n in range(6)}

    async def policy(request: ChatRequest) -> str:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        question = request.messages[1]["content"].partition("Question: ")[2].partition("\n")[0]
        if question != "input 2":  # the others wait until it has an answer
            await gates["input 2"].wait()
        else:
            gates["input 2"].set()
        running -= 1
        return finish("context")

    inputs = [MapInput(f"text {n}", f"input {n}") for n in range(6)]
    async with RLM(client=ScriptedClient(policy)) as rlm:
        items = await rlm.amap(inputs, concurrency=3)
    assert responses(items) == [f"text {n}" for n in range(6)]
    assert [item.index for item in items] == list(range(6))
    assert peak <= 3


async def test_a_failed_input_does_not_affect_the_others() -> None:
    seen: list[MapProgress] = []
    inputs = ["a", MapInput("b", "fail"), object(), "d"]
    async with RLM(client=ScriptedClient(Counter(price=0.5))) as rlm:
        items = await rlm.amap(inputs, "What?", progress=seen.append)
    assert responses(items) == ["A", None, None, "D"]
    assert isinstance(items[1].error, ModelUnavailableError)
    assert items[1].completion is not None
    assert items[1].completion.prompt["size"] == 1
    assert isinstance(items[2].error, ContextError)
    assert items[2].completion is None
    assert seen[0] == MapProgress(done=0, failed=0, total=4, cost=None)
    assert seen[-1] == MapProgress(done=2, failed=2, total=4, cost=1.0)
    assert [progress.done + progress.failed for progress in seen] == [0, 1, 2, 3, 4]


async def test_no_more_inputs_are_read_ahead_than_run_at_once() -> None:
    read: list[int] = []
    ahead = 0
    done = 0

    def lazy() -> Iterator[str]:
        nonlocal ahead
        for number in range(40):
            read.append(number)
            ahead = max(ahead, len(read) - done)
            yield f"text {number}"

    def count(progress: MapProgress) -> None:
        nonlocal done
        done = progress.done
        assert progress.total is None

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        items = await rlm.amap(lazy(), "What?", concurrency=4, progress=count)
    assert len(items) == 40
    assert ahead <= 4


async def test_inputs_may_be_an_async_iterable() -> None:
    closed = False

    async def lazy() -> AsyncIterator[str]:
        nonlocal closed
        try:
            for number in range(5):
                await asyncio.sleep(0)
                yield f"text {number}"
        finally:
            closed = True

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        items = await rlm.amap(lazy(), "What?", concurrency=2)
    assert responses(items) == [f"TEXT {n}" for n in range(5)]
    assert closed


async def test_an_exception_of_the_source_stops_the_map() -> None:
    def broken() -> Iterator[str]:
        yield "a"
        raise OSError("the file is gone")

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        with pytest.raises(OSError, match="the file is gone"):
            await rlm.amap(broken(), "What?")


async def test_prompts_of_any_kind_are_described_in_the_results() -> None:
    code = finish("type(context).__name__")
    async with RLM(client=ScriptedClient(lambda request: code)) as rlm:
        items = await rlm.amap([("a", "b"), {"a": 1}, b"abc"], "What?")
    assert responses(items) == ["tuple", "dict", "bytes"]
    prompts = [item.completion.prompt for item in items if item.completion is not None]
    assert [prompt["kind"] for prompt in prompts] == ["tuple", "dict", "bytes"]


@pytest.mark.parametrize("given", ["a text", b"bytes", bytearray(b"bytes"), {"a": 1}, 5, None])
async def test_inputs_that_are_no_iterable_of_inputs_are_refused(given: Any) -> None:
    async with RLM(client=ScriptedClient(Counter())) as rlm:
        with pytest.raises(ConfigError, match="map needs a list"):
            await rlm.amap(given, "What?")


async def test_a_table_is_refused_and_its_rows_or_columns_are_accepted() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "size": [1, 2]})
    async with RLM(client=ScriptedClient(Counter())) as rlm:
        with pytest.raises(ConfigError, match=r"one column, frame\['text'\], or its rows"):
            await rlm.amap(frame, "What?")
        assert responses(await rlm.amap(frame["text"], "What?")) == ["A", "B"]
    code = finish("context['text']")
    async with RLM(client=ScriptedClient(lambda _: code)) as rlm:
        assert responses(await rlm.amap(frame.to_dict("records"), "What?")) == ["a", "b"]


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"progress": "yes"},
        {"resume": 3},
        {"cancel": "x"},
        {"root_prompt": 5},
    ],
)
async def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    async with RLM(client=ScriptedClient(Counter())) as rlm:
        with pytest.raises(ConfigError, match=next(iter(options))):
            await rlm.amap(["a"], **options)


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with (
        RLM(client=ScriptedClient(Counter())) as rlm,
        pytest.raises(ConfigError, match="map has no option 'resum'; did you mean 'resume'"),
    ):
        rlm.map(["a"], "What?", resum="x")  # type: ignore[call-arg]


async def test_a_persistent_rlm_is_refused() -> None:
    async with RLM(client=ScriptedClient(Counter()), persistent=True) as rlm:
        with pytest.raises(ConfigError, match="leave out persistent"):
            await rlm.amap(["a"], "What?")


def test_map_is_amap_for_callers_without_a_loop() -> None:
    seen: list[MapProgress] = []
    with RLM(client=ScriptedClient(Counter())) as rlm:
        items = rlm.map(["a", "b"], "What?", concurrency=2, progress=seen.append)
    assert responses(items) == ["A", "B"]
    assert seen[-1].done == 2


async def test_an_rlm_that_cannot_run_at_all_stops_the_map_at_once() -> None:
    rlm = RLM(client=ScriptedClient(Counter()))
    rlm.close()
    with pytest.raises(ConfigError, match="closed"):
        await rlm.amap(["a"] * 100, "What?")


async def test_a_progress_callback_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(progress: MapProgress) -> None:
        raise ZeroDivisionError

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        assert responses(await rlm.amap(["a", "b"], "What?", progress=fail)) == ["A", "B"]
    assert "the progress callback failed" in caplog.text


# Cancellation


async def test_a_cancelled_map_stops_its_runs(tmp_path: Path) -> None:
    saved, waiting, stopped = asyncio.Event(), asyncio.Event(), list[str]()

    async def policy(request: ChatRequest) -> str:
        if "Question: first" not in request.messages[1]["content"]:
            try:
                waiting.set()
                await asyncio.Event().wait()
            finally:
                stopped.append(request.text)
        return finish("'fine'")

    def progress(state: MapProgress) -> None:
        if state.done == 1:
            saved.set()

    path = tmp_path / "results.jsonl"
    inputs = [MapInput("a", question) for question in ("first", "second", "third", "fourth")]
    async with RLM(client=ScriptedClient(policy)) as rlm:
        task = asyncio.create_task(rlm.amap(inputs, concurrency=2, resume=path, progress=progress))
        await saved.wait()
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert 1 <= len(stopped) <= 2
    [line] = path.read_text().splitlines()
    assert json.loads(line)["completion"]["response"] == "fine"


async def test_a_token_stops_the_map_and_keeps_finished_results() -> None:
    token = CancelToken()
    read: list[int] = []

    def lazy() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield f"text {number}"

    def stop(progress: MapProgress) -> None:
        if progress.done == 3:
            token.cancel()

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        items = await rlm.amap(lazy(), "What?", concurrency=1, progress=stop, cancel=token)
    assert responses(items)[:3] == ["TEXT 0", "TEXT 1", "TEXT 2"]
    assert len(read) == 3


async def test_a_token_stops_a_map_that_waits_for_an_input() -> None:
    token = CancelToken()
    ended: list[str] = []

    async def slow() -> AsyncIterator[str]:
        yield "a"
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    def stop(progress: MapProgress) -> None:
        if progress.done:
            token.cancel()

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        items = await rlm.amap(slow(), "What?", progress=stop, cancel=token)
        assert responses(items) == ["A"]
        assert ended == ["cleaned up"]
        assert await rlm.amap(slow(), "What?", cancel=token) == []  # the token is cancelled already


async def test_a_source_that_blocks_delays_neither_the_runs_nor_the_end() -> None:
    token = CancelToken()
    first, never = threading.Event(), threading.Event()
    threads: set[int] = set()

    def slow() -> Iterator[str]:
        threads.add(threading.get_ident())
        yield "a"
        first.wait()  # until the first run has ended
        threads.add(threading.get_ident())
        yield "b"
        never.wait()

    def progress(state: MapProgress) -> None:
        if state.done == 1:
            first.set()
        if state.done == 2:
            token.cancel()

    try:
        async with RLM(client=ScriptedClient(Counter())) as rlm:
            items = await rlm.amap(slow(), "What?", concurrency=2, progress=progress, cancel=token)
        assert responses(items) == ["A", "B"]
        assert len(threads) == 1
        assert threading.get_ident() not in threads
    finally:
        never.set()


async def test_a_source_that_was_cancelled_fails_the_map() -> None:
    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise asyncio.CancelledError

    async with RLM(client=ScriptedClient(Counter())) as rlm:
        with pytest.raises(CancellationError, match="but not by the map"):
            await rlm.amap(broken(), "What?")


# Resume


async def test_resume_runs_failed_inputs_again_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    inputs = ["a", MapInput("b", "fail"), "c"]
    first = Counter(price=1.0)
    async with RLM(client=ScriptedClient(first)) as rlm:
        before = await rlm.amap(inputs, "What?", resume=path)
    assert sorted(first.asked) == ["What?", "What?", "fail"]
    second, seen = Counter(), list[MapProgress]()
    async with RLM(client=ScriptedClient(second), max_timeout=60) as rlm:  # limits do not matter
        after = await rlm.amap([*inputs, "d"], "What?", resume=path, progress=seen.append)
    assert sorted(second.asked) == ["What?", "fail"]
    assert responses(after) == ["A", None, "C", "D"]
    assert seen[-1] == MapProgress(done=3, failed=1, total=4, cost=None)
    [kept, again] = before[0].completion, after[0].completion
    assert kept is not None
    assert again is not None
    assert again.to_dict() == kept.to_dict()


async def test_resume_runs_other_questions_inputs_and_configurations(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"

    async def asked(inputs: list[Any], question: str, **options: Any) -> int:
        counter = Counter()
        async with RLM(client=ScriptedClient(counter, model=options.pop("model", "m")), **options) as rlm:
            await rlm.amap(inputs, question, resume=path)
        return len(counter.asked)

    assert await asked(["a"], "What?") == 1
    assert await asked(["a"], "What?") == 0
    assert await asked(["b"], "What?") == 1
    assert await asked([b"a"], "Why?") == 1
    assert await asked(["a"], "Why?") == 1
    assert await asked(["a"], "What?", model="other") == 1
    assert await asked(["a"], "What?", sampling_args={"temperature": 1.0}) == 1
    assert await asked(["a"], "What?", user_prologue="Be brief.") == 1
    assert await asked(["a"], "What?", max_iterations=3) == 1
    assert await asked(["a"], "What?", max_tokens=10**6, max_concurrent_subcalls=9) == 0


async def test_tools_and_models_of_the_same_shape_are_distinguished(tmp_path: Path) -> None:
    names = "answer.update(content=f'{NAMES} {llm_query(context)} {rlm_query(context)}', ready=True)"

    def root(request: ChatRequest) -> str:
        below = "answer.update(content=llm_query(context), ready=True)"
        return repl_block(names if "Question: Which?" in request.messages[1]["content"] else below)

    def model(name: str) -> ScriptedClient:
        return ScriptedClient(lambda r: name if len(r.messages) == 1 else root(r), model=name)

    async def ask(tools: dict[str, Any], others: dict[str, str], depths: list[str]) -> str | None:
        clients = {name: model(served) for name, served in others.items()}
        options: dict[str, Any] = {"custom_tools": tools, "other_clients": clients, "depth_models": depths}
        async with RLM(client=ScriptedClient(root), max_depth=2, **options) as rlm:
            [item] = await rlm.amap(["a"], "Which?", resume=tmp_path / "results.jsonl")
        return item.response

    straight, swapped = {"x": "one", "y": "two", "z": "three"}, {"x": "two", "y": "one", "z": "three"}
    for _ in range(2):
        assert await ask({"NAMES": ["north"]}, straight, ["x", "y"]) == "['north'] one two"
        assert await ask({"NAMES": ["south"]}, straight, ["x", "y"]) == "['south'] one two"
        assert await ask({"NAMES": ["south"]}, swapped, ["x", "y"]) == "['south'] two one"
        assert await ask({"NAMES": ["south"]}, straight, ["x", "z"]) == "['south'] one three"
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4


async def test_the_signature_of_a_tool_is_part_of_the_configuration(tmp_path: Path) -> None:
    def shout(text: str, times: int = 1) -> str:
        return text * times

    def told(text: str, times: int = 2) -> str:
        return text * times

    for tool, asked in ((shout, 1), (shout, 0), (told, 1)):
        counter = Counter()
        async with RLM(client=ScriptedClient(counter), custom_tools={"shout": tool}) as rlm:
            await rlm.amap(["a"], "What?", resume=tmp_path / "results.jsonl")
        assert len(counter.asked) == asked


async def test_each_of_several_equal_inputs_has_its_own_result(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, second = Counter(), Counter()
    async with RLM(client=ScriptedClient(first)) as rlm:
        await rlm.amap(["a"] * 3, "What?", resume=path)
    async with RLM(client=ScriptedClient(second)) as rlm:
        assert responses(await rlm.amap(["a"] * 5, "What?", resume=path)) == ["A"] * 5
    assert (len(first.asked), len(second.asked)) == (3, 2)


async def test_structured_answers_come_back_as_objects(tmp_path: Path) -> None:
    class Count(BaseModel):
        number: int

    code = finish("'{\"number\": 3}'")
    path = tmp_path / "results.jsonl"
    for _ in range(2):
        async with RLM(client=ScriptedClient(lambda request: code)) as rlm:
            [item] = await rlm.amap(["a"], "How many?", resume=path, response_format=Count)
        assert item.completion is not None
        assert item.completion.parsed == Count(number=3)
    assert len(path.read_text().splitlines()) == 1


async def test_the_input_of_an_incomplete_line_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    async with RLM(client=ScriptedClient(Counter())) as rlm:
        await rlm.amap(["a", "b"], "What?", concurrency=1, resume=path)
    path.write_bytes(path.read_bytes()[:-20])
    counter = Counter()
    async with RLM(client=ScriptedClient(counter)) as rlm:
        assert responses(await rlm.amap(["a", "b", "c"], "What?", resume=path)) == ["A", "B", "C"]
        assert len(counter.asked) == 2
        assert responses(await rlm.amap(["a", "b", "c"], "What?", resume=path)) == ["A", "B", "C"]
    assert len(counter.asked) == 2


@pytest.mark.parametrize(
    "text",
    [
        "hello\n",
        '{"v": 2, "type": "turn"}\n',
        '{"v": 1, "key": "x"}\n',
        '{"v": 1, "key": ["x"], "completion": {}}\n',
        '{"v": 1, "key": "x", "completion": null, "error": null}\n',
        '{"v": 1, "key": "x", "completion": {"root_model": "m"}}\n',
        '{"v": 1, "key": "x", "completion": "done"}\n',
    ],
)
async def test_a_file_without_results_is_refused_and_not_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    async with RLM(client=ScriptedClient(Counter())) as rlm:
        with pytest.raises(LogError, match="line 1: "):
            await rlm.amap(["a"], "What?", resume=path)
    assert path.read_text() == text


async def test_answers_are_read_back_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log would have `[redacted]` in place of keys, bearer tokens and the values of secret names."""
    monkeypatch.setenv("THEIR_API_KEY", "ABCDEFGH-1234")
    text = '{"header": "Bearer ABCDEFGHIJKLMNOP1234 of ABCDEFGH-1234"}'
    schema = {"properties": {"header": {"type": "string", "pattern": "^Bearer [A-Z0-9]+ of [A-Z0-9-]+$"}}}
    code = finish(repr(text))
    client = ScriptedClient(lambda _: code, model="my-secret")
    options: dict[str, Any] = {"resume": tmp_path / "results.jsonl", "response_format": schema}
    async with RLM(client=client) as rlm:
        [first] = await rlm.amap(["a"], "Which?", **options)
        [second] = await rlm.amap(["a"], "Which?", **options)
    assert len(client.requests) == 1
    assert first.completion is not None
    assert second.completion is not None
    assert second.response == first.response == text
    assert second.completion.parsed == first.completion.parsed == json.loads(text)
    assert second.completion.to_dict() == first.completion.to_dict()


async def test_errors_are_saved_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_API_KEY", "abcdefgh-1234")
    path = tmp_path / "results.jsonl"
    client = ScriptedClient(lambda _: Fault(400, "the key abcdefgh-1234 is of no use"))
    async with RLM(client=client) as rlm:
        [item] = await rlm.amap(["a"], "What?", resume=path)
    assert "abcdefgh-1234" in str(item.error)
    assert "abcdefgh-1234" not in path.read_text()
    assert path.read_text().count("[redacted]") == 2


async def test_an_input_whose_answer_no_longer_has_the_form_is_run_again(tmp_path: Path) -> None:
    taken: set[int] = set()

    class Count(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def check(cls, number: int) -> int:
            if number not in taken:
                raise ValueError("not that many")
            return number

    code = finish("'{\"number\": %d}'")
    path = tmp_path / "results.jsonl"
    for number, asked in ((3, 1), (3, 0), (7, 1), (7, 0)):
        taken = {number}
        client = ScriptedClient(lambda _, number=number: code % number)  # type: ignore[misc]
        async with RLM(client=client) as rlm:
            [item] = await rlm.amap(["a"], "How many?", resume=path, response_format=Count)
        assert item.completion is not None
        assert item.completion.parsed == Count(number=number)
        assert len(client.requests) == asked


async def test_a_result_of_a_later_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    async with RLM(client=ScriptedClient(Counter())) as rlm:
        await rlm.amap(["a"], "What?", resume=path)
    data = json.loads(path.read_text())
    data["completion"]["stats"]["new"] = data["completion"]["new"] = 3
    data["completion"]["usage_summary"]["model_usage_summaries"]["scripted"]["new"] = 3
    path.write_text(json.dumps(data) + "\n")
    counter = Counter()
    async with RLM(client=ScriptedClient(counter)) as rlm:
        assert responses(await rlm.amap(["a"], "What?", resume=path)) == ["A"]
    assert counter.asked == []


async def test_a_file_that_cannot_be_written_is_refused_before_any_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    counter = Counter()
    async with RLM(client=ScriptedClient(counter)) as rlm:
        for path in (tmp_path / "file" / "results.jsonl", Path("/proc/none/results.jsonl"), tmp_path):
            with pytest.raises((ConfigError, LogError), match=r"cannot be (kept in|read)"):
                await rlm.amap(["a"], "What?", resume=path)
    assert counter.asked == []


_SLOW = """
import asyncio, os, sys
from rlm import RLM
from rlm.testing import ScriptedClient

async def policy(request):
    number = request.messages[1]["content"].partition("Question: ")[2].partition("\\n")[0]
    with open(sys.argv[2], "a") as file:
        file.write(number + "\\n")
    return "```repl\\nanswer.update(content=context, ready=True)\\n```"

def progress(state):
    if state.done == int(sys.argv[3]):
        os.kill(os.getpid(), 9)

async def main():
    async with RLM(client=ScriptedClient(policy)) as rlm:
        items = await rlm.amap(
            [f"text {n}" for n in range(12)], "What?", concurrency=2, resume=sys.argv[1], progress=progress
        )
    print([item.response for item in items])

asyncio.run(main())
"""


def test_a_killed_map_continues_where_it_stopped(tmp_path: Path) -> None:
    paths = [str(tmp_path / "results.jsonl"), str(tmp_path / "asked")]
    command = [sys.executable, "-c", _SLOW, *paths]
    killed = subprocess.run([*command, "5"], capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    done = subprocess.run([*command, "-1"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == repr([f"text {n}" for n in range(12)]), done.stderr
    # 12 inputs, and the one or two that ran when the process was killed.
    assert 12 <= len(Path(paths[1]).read_text().splitlines()) <= 14
    assert len(Path(paths[0]).read_text().splitlines()) == 12


# The progress bar


_BAR = """
import asyncio
from rlm import RLM
from rlm.testing import Fault, ScriptedClient

def policy(request):
    return "```repl\\nanswer.update(content='x', ready=True)\\n```"

async def main():
    async with RLM(client=ScriptedClient(policy, latency=0.3)) as rlm:
        await rlm.amap(["a", object(), "c"], "What?", progress=True, concurrency=1)

asyncio.run(main())
"""


def test_the_progress_bar_is_drawn_on_a_terminal_and_is_a_line_elsewhere() -> None:
    piped = subprocess.run([sys.executable, "-c", _BAR], capture_output=True, text=True, check=True)
    assert piped.stdout == ""
    [line] = piped.stderr.splitlines()
    assert line.startswith("map: 2 of 3 done, 1 failed in ")
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", _BAR], stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(main, 65536):
                shown += piece
        except OSError:  # the end of a terminal's output on Linux
            pass
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert "1 of 3 done" in text
    assert "map: 2 of 3 done, 1 failed in " in text
