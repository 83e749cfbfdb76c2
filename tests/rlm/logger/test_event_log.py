"""The event log: its content, its failures, the secrets that stay out of it, and the trajectory."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import multiprocessing
import pickle
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM
from rlm._redaction import REDACTED, Redactor, is_secret_name
from rlm.errors import LogError, TimeoutExceededError
from rlm.events import Event, Reply, RunStart, Subcall, Turn, TurnStart
from rlm.logger import RLMLogger, Trajectory, protect, read_log
from rlm.testing import FINISH, ChatRequest, ScriptedClient, finish, repl_block, serve
from rlm.types import Usage

SECRET = "sk-do-not-write-me-down"
CONTEXT = "a needle in the hay " * 500


def policy(request: ChatRequest) -> str:
    if request.is_subcall:
        return "sub reply \ud800"
    if request.turn == 0:
        return repl_block("print(llm_query('read ' + context))\n1/0", "Look.")
    return FINISH


def recursive(request: ChatRequest) -> str:
    """A root asks a child run, which asks a model."""
    if request.is_subcall:
        return "leaf"
    deeper = "Question: Top?" in request.messages[1]["content"]
    code = "rlm_query('inner')" if deeper else "llm_query('innermost')"
    return finish(code)


def turn_start(number: int, run: str = "r") -> TurnStart:
    return TurnStart(time=1.0, run=run, parent=None, depth=0, turn=number)


def lines(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def types(path: Path | None) -> list[str]:
    return [line["type"] for line in lines(path)]


# The content of the log


def test_the_log_holds_all_events_but_neither_the_context_nor_a_key(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path / "new" / "folder", file_name="run")
    with serve(policy, api_key=SECRET) as server:
        options = {"model_name": "scripted", "base_url": server.base_url, "api_key": SECRET}
        with RLM(backend="vllm", backend_kwargs=options, logger=logger) as rlm:
            completion = rlm.completion(CONTEXT, "What?")
    events = lines(logger.path)
    assert [event["type"] for event in events] == [
        *(
            "run_start",
            "turn_start",
            "reply",
            "cell_start",
            "batch_start",
            "subcall",
            "batch_end",
            "cell",
            "turn",
        ),
        *("turn_start", "reply", "cell_start", "cell", "turn", "run_end"),
    ]
    assert {event["v"] for event in events} == {2}
    assert len({event["run"] for event in events}) == 1
    start, end = events[0], events[-1]
    assert start["context"] == {
        "kind": "str",
        "size": len(CONTEXT),
        "sha256": hashlib.sha256(CONTEXT.encode()).hexdigest(),
    }
    assert start["question"] == "What?"
    assert events[7]["error"] == "ZeroDivisionError: division by zero"
    assert (end["stop"], end["response"], end["stats"]["subcalls"]) == ("answered", "done", 1)
    assert end["usage"] == completion.usage_summary.to_dict()
    assert logger.path is not None
    assert logger.path.name.startswith("run_")
    text = logger.path.read_text(encoding="ascii")
    assert SECRET not in text
    # The excerpt of the sub-call's prompt holds the beginning of the context. Nothing holds the whole context.
    assert len(text) < len(CONTEXT) + 12_000
    assert CONTEXT[:400] not in text


async def test_a_megabyte_of_context_over_six_turns_makes_a_small_log(tmp_path: Path) -> None:
    text = "".join(f"line {number}: some words that fill a line of the context\n" for number in range(20_000))
    assert len(text) > 1_000_000

    def look(request: ChatRequest) -> str:
        if request.is_subcall:
            return "a summary of two hundred characters " * 6
        if request.turn < 5:
            code = "part = context[:100_000]\nprint(part[:2000])\nfor text in llm_query_batched([part] * 5): print(text)"
            return repl_block(code, "I look at a part and ask about it.")
        return FINISH

    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(look), logger=logger) as rlm:
        assert (await rlm.acompletion(text, "What?")).stats.turns == 6
    assert logger.path is not None
    assert logger.path.stat().st_size <= 100_000


async def test_concurrent_runs_share_a_file_line_by_line(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(policy), logger=logger) as rlm:
        await asyncio.gather(*(rlm.acompletion(CONTEXT, f"What {n}?") for n in range(8)))
    events = lines(logger.path)
    assert len(events) == 8 * 15
    assert len({event["run"] for event in events}) == 8
    starts = [event for event in events if event["type"] == "run_start"]
    assert {event["question"] for event in starts} == {f"What {n}?" for n in range(8)}


async def test_a_child_run_names_its_parent_and_its_sub_call(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(recursive), logger=logger, max_depth=2) as rlm:
        assert (await rlm.acompletion("outer", "Top?")).response == "leaf"
    events = lines(logger.path)
    root, child = (event for event in events if event["type"] == "run_start")
    assert (root["depth"], root["parent"], root["call"]) == (0, None, None)
    assert (child["depth"], child["parent"]) == (1, root["run"])
    calls = [event for event in events if event["type"] == "subcall" and event["run"] == root["run"]]
    assert [call["call"] for call in calls] == [child["call"]]


async def test_a_run_that_reaches_a_limit_has_the_limit_and_its_end_in_the_log(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    client = ScriptedClient(lambda request: repl_block("while True: pass"))
    async with RLM(client=client, logger=logger, max_timeout=0.5) as rlm:
        with pytest.raises(TimeoutExceededError) as caught:
            await rlm.acompletion("x", "What?")
    assert "limit" in types(logger.path)
    end = lines(logger.path)[-1]
    assert end["type"] == "run_end"
    assert end["stop"] == "timeout"
    assert end["error"].startswith("TimeoutExceededError: ")
    assert caught.value.completion is not None
    assert caught.value.completion.metadata is not None


def test_processes_and_threads_append_to_one_log(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)

    def write(run: str) -> None:
        trajectory = logger.trajectory()
        for number in range(200):
            trajectory.record(turn_start(number, run))

    write("parent")
    context = multiprocessing.get_context("fork")
    workers: list[Any] = [context.Process(target=write, args=(f"process {n}",)) for n in range(2)]
    workers += [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert logger.path is not None
    found: dict[str, list[int]] = {}
    for event in read_log(logger.path):
        assert isinstance(event, TurnStart)
        found.setdefault(event.run, []).append(event.turn)
    assert found == {
        run: list(range(200)) for run in ("parent", "process 0", "process 1", "thread 0", "thread 1")
    }


def test_a_pickled_logger_appends_to_the_same_file_and_closes_it(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    logger.trajectory().record(turn_start(1))
    other = pickle.loads(pickle.dumps(logger))
    other.trajectory().record(turn_start(2))
    assert logger.path is not None
    assert [event.turn for event in read_log(logger.path) if isinstance(event, TurnStart)] == [1, 2]
    path = str(logger.path)
    del logger, other
    gc.collect()
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert Path(path) not in links


# Logs that cannot be written or read


async def test_a_log_that_cannot_be_written_is_reported_once_and_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = RLMLogger(log_dir=tmp_path / "logs")
    (tmp_path / "logs").rmdir()
    async with RLM(client=ScriptedClient(policy), logger=logger) as rlm:
        assert (await rlm.acompletion("x", "What?")).response == "done"
        assert (await rlm.acompletion("x", "What?")).metadata is not None
    records = [record for record in caplog.records if record.name.startswith("rlm.logger")]
    assert len(records) == 1
    assert "events are lost" in records[0].getMessage()


def test_a_full_disk_is_reported_once_and_leaves_a_readable_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit of the file size plays the full disk: a write stops in the middle of a line, and the next writes fail."""
    import resource

    logger = RLMLogger(log_dir=tmp_path)
    trajectory = logger.trajectory()
    trajectory.record(turn_start(1))
    assert logger.path is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (logger.path.stat().st_size + 20, hard))
        with caplog.at_level(logging.WARNING):
            for number in range(2, 12):
                trajectory.record(turn_start(number))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(caplog.records) == 1
    trajectory.record(turn_start(12))
    assert [event.turn for event in read_log(logger.path) if isinstance(event, TurnStart)] == [1, 12]


_ENDLESS = """
import sys
from rlm.events import TurnStart
from rlm.logger import RLMLogger
logger = RLMLogger(log_dir=sys.argv[1])
trajectory = logger.trajectory()
number = 0
while True:
    number += 1
    trajectory.record(TurnStart(time=1.0, run="x" * 200_000, parent=None, depth=0, turn=number))
    if number == 20:
        print(logger.path, flush=True)
"""


def test_a_killed_process_leaves_a_readable_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ENDLESS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        process.kill()
    turns = [event.turn for event in read_log(path) if isinstance(event, TurnStart)]
    assert len(turns) >= 20
    assert turns == list(range(1, len(turns) + 1))


@pytest.mark.parametrize("kept", [1, 5, 7, 40, -2])
def test_a_half_last_line_is_left_out(tmp_path: Path, kept: int) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    for number in (1, 2):
        logger.trajectory().record(turn_start(number))
    assert logger.path is not None
    whole, half = logger.path.read_bytes().splitlines(keepends=True)
    logger.path.write_bytes(whole + half[:kept])
    assert [event.to_dict() for event in read_log(logger.path)] == [turn_start(1).to_dict()]


def test_a_whole_line_after_a_half_line_is_read(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    for number in (1, 2, 3):
        logger.trajectory().record(turn_start(number))
    assert logger.path is not None
    first, second, third = logger.path.read_bytes().splitlines(keepends=True)
    logger.path.write_bytes(first + second[:30] + third)
    assert [event.turn for event in read_log(logger.path) if isinstance(event, TurnStart)] == [1, 3]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("hello", "no JSON"),
        ("[1]", "no object with a version"),
        ('{"type": "turn_start"}', "no object with a version"),
        ('{"v": 1, "type": "turn_start"}', "version 1 of the format"),
        ('{"v": 2}', "no type"),
        (
            '{"v": 2, "type": "turn_start", "time": 1.0, "run": "r", "parent": null, "depth": 0}',
            "'turn' is missing",
        ),
        (
            '{"v": 2, "type": "turn_start", "time": 1.0, "run": [], "parent": null, "depth": 0, "turn": 1}',
            "'run' cannot be a list",
        ),
        (
            '{"v": 2, "type": "reply", "time": 1.0, "run": "r", "parent": null, "depth": 0, "model": "m", "usage": null}',
            "'usage' cannot be None",
        ),
    ],
)
def test_a_line_that_is_no_event_is_an_error_with_its_number(tmp_path: Path, line: str, problem: str) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    logger.trajectory().record(turn_start(1))
    assert logger.path is not None
    with logger.path.open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(LogError, match=rf"jsonl, line 3: .*{problem}"):
        read_log(logger.path)


def test_a_missing_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere\.jsonl cannot be read: No such file"):
        read_log(tmp_path / "nowhere.jsonl")


def test_fields_and_types_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    data = {"v": 2, **turn_start(1).to_dict(), "more": 1}
    path.write_text("".join(json.dumps(line) + "\n" for line in (data, {**data, "type": "newer"})))
    assert read_log(path) == [turn_start(1)]


# Secrets


class Owner:
    """Plays a client."""


NAMED: list[tuple[Any, Any]] = [
    ({"api_key": "abc"}, {"api_key": REDACTED}),
    ({"extra_headers": {"Authorization": "abc"}}, {"extra_headers": {"Authorization": REDACTED}}),
    ({"X-Api-Key": "abc", "x": 1}, {"X-Api-Key": REDACTED, "x": 1}),
    ([{"a": ({"accessToken": ["a", "b"]},)}], [{"a": [{"accessToken": REDACTED}]}]),
    ({"db": {"password": 1234}}, {"db": {"password": REDACTED}}),
    ({"client_secret": None, "token": ""}, {"client_secret": None, "token": ""}),
    ({"max_tokens": 5, "eos_token": "</s>", "tokenizer": "t", "author": "a"},) * 2,
]


@pytest.mark.parametrize(("given", "kept"), NAMED)
def test_a_value_under_the_name_of_a_secret_is_taken_out_at_any_nesting(given: Any, kept: Any) -> None:
    assert Redactor().data(given) == kept


def test_names_of_secrets_are_known_in_any_spelling() -> None:
    secret = "apikey API_KEY apiKey x-portkey-api-key hf_token Proxy-Authorization Set-Cookie AWS_SECRET_ACCESS_KEY passwd"
    assert [name for name in secret.split() if not is_secret_name(name)] == []
    plain = "key keys monkey tokens input_tokens token_count secretary authors pad_token keyboard top_k"
    assert [name for name in plain.split() if is_secret_name(name)] == []


def test_keys_of_clients_and_of_the_environment_are_taken_out_of_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = Owner()
    protect(owner, ["client-key-1234", "short"])
    monkeypatch.setenv("SOME_API_KEY", "from-the-environment")
    monkeypatch.setenv("SOME_API_KEY_ID", "this-is-no-key")
    text = "client-key-1234, from-the-environment, this-is-no-key, short"
    assert Redactor().text(text) == f"{REDACTED}, {REDACTED}, this-is-no-key, short"
    del owner
    gc.collect()
    assert "client-key-1234" in Redactor().text(text)


def test_a_key_that_the_model_prints_is_not_written_down(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    code = finish(f"'{SECRET}'", f"print('{SECRET}')")
    with serve(lambda request: code, api_key=SECRET) as server:
        options = {"model_name": "scripted", "base_url": server.base_url, "api_key": SECRET}
        with RLM(backend="vllm", backend_kwargs=options, logger=logger) as rlm:
            assert rlm.completion("text", "What?").response == SECRET
    assert logger.path is not None
    assert SECRET not in logger.path.read_text()
    assert REDACTED in logger.path.read_text()


def test_bearer_tokens_are_taken_out_of_texts() -> None:
    text = "curl -H 'authorization: Bearer abcdef0123456789.xyz' and Basic dXNlcjpwYXNzd29yZA== and bearer certificates"
    assert Redactor().text(text) == (
        f"curl -H 'authorization: Bearer {REDACTED}' and Basic {REDACTED} and bearer certificates"
    )


async def test_neither_log_nor_trajectory_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = 'a "quoted"/key'  # JSON escapes it
    monkeypatch.setenv("OTHER_API_KEY", key)

    def leaky(request: ChatRequest) -> str:
        if request.is_subcall:
            return f"the key is {key}"
        code = f"k = {key!r}\nprint(k)\nd = llm_query(k)\nanswer.update(content=k, ready=True)\nraise ValueError(k)"
        return repl_block(code)

    logger = RLMLogger(log_dir=tmp_path)
    sampling = {"extra_headers": {"x-api-key": "under-its-name"}, "temperature": 0.5}
    async with RLM(client=ScriptedClient(leaky), logger=logger, sampling_args=sampling) as rlm:
        completion = await rlm.acompletion(f"context with {key}", f"What is {key}?")
    assert completion.response == key
    assert logger.path is not None
    events = read_log(logger.path)
    for kept in (repr([event.to_dict() for event in events]), repr(completion.metadata)):
        assert re.findall(r"quoted.{,10}key|under-its-name", kept) == []
        assert REDACTED in kept
    assert json.dumps(key)[1:-1] not in logger.path.read_text()
    start = events[0]
    assert isinstance(start, RunStart)
    assert start.sampling == {"extra_headers": {"x-api-key": REDACTED}, "temperature": 0.5}


# The trajectory


async def test_a_completion_keeps_its_trajectory() -> None:
    async with RLM(client=ScriptedClient(policy), logger=RLMLogger()) as rlm:
        completion = await rlm.acompletion(CONTEXT, "What?")
    metadata = completion.metadata
    assert metadata is not None
    about = metadata["run_metadata"]
    assert (about["question"], about["stop"], about["log_file"]) == ("What?", "answered", None)
    first, second = metadata["iterations"]
    assert first["prompt"] == completion.messages[:2]
    assert first["response"] == completion.messages[2]["content"]
    assert second["prompt"] == [completion.messages[3]]
    [block] = first["code_blocks"]
    assert block["code"].startswith("print(llm_query(")
    assert "ZeroDivisionError" in block["stderr"]
    assert block["rlm_calls"][0]["kind"] == "llm"
    assert "ZeroDivisionError" in first["observation"]
    assert (first["final_answer"], second["final_answer"]) == (None, "done")
    json.dumps(completion.to_dict())


async def test_a_trajectory_that_is_read_from_a_log_is_equal_and_holds_child_runs(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(recursive), logger=logger, max_depth=2) as rlm:
        completions = [await rlm.acompletion("outer", "Top?") for _ in range(2)]
    assert logger.path is not None
    read = Trajectory.of(read_log(logger.path))
    for trajectory, completion in zip(read, completions, strict=True):
        assert completion.metadata is not None
        assert completion.metadata["run_metadata"].pop("log_file") == str(logger.path)
        from_log = trajectory.metadata()
        assert from_log["run_metadata"].pop("log_file") is None
        assert from_log == completion.metadata
        [call] = from_log["iterations"][0]["code_blocks"][0]["rlm_calls"]
        assert call["metadata"]["run_metadata"]["stop"] == "answered"
        assert call["metadata"]["iterations"][0]["code_blocks"][0]["rlm_calls"][0]["response"] == "leaf"


def test_a_log_without_the_start_of_its_run_has_no_trajectory() -> None:
    assert Trajectory.of([turn_start(2)]) == []


async def test_without_a_logger_there_is_no_metadata() -> None:
    async with RLM(client=ScriptedClient(policy)) as rlm:
        assert (await rlm.acompletion("x", "What?")).metadata is None


def test_events_that_are_read_back_are_equal(tmp_path: Path) -> None:
    head: dict[str, Any] = {"time": 1.5, "run": "r", "parent": "p", "depth": 1}
    usage = Usage(3, 4, 0.5, 1)
    reply: dict[str, Any] = {"turn": 1, "model": "m", "request": "k", "usage": usage, "seconds": 0.1}
    subcall: dict[str, Any] = {
        "batch": "b",
        "index": 0,
        "call": "c",
        "kind": "llm",
        "model": "m",
        "request": "k",
    }
    subcall |= {"prompt_chars": 1, "prompt_head": "p", "response": "", "seconds": 0.1, "error": "empty"}
    events: list[Event] = [
        Reply(**head, **reply, content="a \ud800", message={"role": "assistant", "content": "a \ud800"}),
        Reply(**head, **reply, content="", message=None, error="no", error_type="ModelError"),
        Reply(
            **head,
            **reply,
            content="a",
            message={"role": "assistant", "content": "a", "reasoning_content": "b"},
        ),
        Subcall(**head, **subcall, message={"role": "assistant", "content": ""}),
        Turn(**head, turn=1, observation="o", final_answer=None, seconds=0.1),
    ]
    logger = RLMLogger(log_dir=tmp_path)
    trajectory = logger.trajectory()
    for event in events:
        trajectory.record(event)
    assert logger.path is not None
    assert read_log(logger.path) == events
