"""What is written down of a run, and what is shown of it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from rlm import RLM
from rlm.errors import TimeoutExceededError
from rlm.logger import RLMLogger
from rlm.logger.console import Console
from rlm.testing import ChatRequest, ScriptedClient, serve

SECRET = "sk-do-not-write-me-down"
CONTEXT = "a needle in the hay " * 500


def policy(request: ChatRequest) -> str:
    if request.messages[0]["role"] != "system":
        return "sub reply \ud800"
    if request.turn == 0:
        return "Look.\n```repl\nprint(llm_query('read ' + context))\n1/0\n```"
    return "```repl\nanswer.update(content='done', ready=True)\n```"


def read(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_the_log_holds_what_happened_and_neither_context_nor_key(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path / "new" / "folder", file_name="run")
    with serve(policy, api_key=SECRET) as server:
        options = {"model_name": "scripted", "base_url": server.base_url, "api_key": SECRET}
        with RLM(backend="vllm", backend_kwargs=options, logger=logger) as rlm:
            completion = rlm.completion(CONTEXT, "What?")
    events = read(logger.path)
    assert [event["type"] for event in events] == [
        "run_start",
        "reply",
        "subcall",
        "cell",
        "turn",
        "reply",
        "cell",
        "turn",
        "run_end",
    ]
    assert {event["v"] for event in events} == {1}
    assert len({event["run"] for event in events}) == 1
    start, end = events[0], events[-1]
    assert start["context"] == {
        "kind": "str",
        "size": len(CONTEXT),
        "sha256": hashlib.sha256(CONTEXT.encode()).hexdigest(),
    }
    assert start["question"] == "What?"
    assert events[3]["error"] == "ZeroDivisionError: division by zero"
    assert (end["stop"], end["response"], end["stats"]["subcalls"]) == ("answered", "done", 1)
    assert end["usage"] == completion.usage_summary.to_dict()
    assert logger.path is not None
    text = logger.path.read_text(encoding="ascii")
    assert SECRET not in text
    # The context's beginning is in the sub-call's own excerpt; the whole of it is nowhere.
    assert len(text) < len(CONTEXT) + 8_000
    assert CONTEXT[:400] not in text


async def test_the_trajectory_is_kept_with_the_completion() -> None:
    async with RLM(client=ScriptedClient(policy), logger=RLMLogger()) as rlm:
        completion = await rlm.acompletion(CONTEXT, "What?")
    metadata = completion.metadata
    assert metadata is not None
    assert metadata["run_metadata"]["question"] == "What?"
    assert metadata["run_metadata"]["log_file"] is None
    first, second = metadata["iterations"]
    assert first["code_blocks"][0]["rlm_calls"][0]["kind"] == "llm"
    assert "ZeroDivisionError" in first["observation"]
    assert second["final_answer"] == "done"
    json.dumps(completion.to_dict())


async def test_without_a_logger_there_is_no_metadata() -> None:
    async with RLM(client=ScriptedClient(policy)) as rlm:
        assert (await rlm.acompletion("x", "What?")).metadata is None


async def test_runs_at_once_share_a_file_line_by_line(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(policy), logger=logger) as rlm:
        await asyncio.gather(*(rlm.acompletion(CONTEXT, f"What {n}?") for n in range(8)))
    events = read(logger.path)
    assert len(events) == 8 * 9
    assert len({event["run"] for event in events}) == 8
    assert {event["question"] for event in events if event["type"] == "run_start"} == {
        f"What {n}?" for n in range(8)
    }


async def test_child_runs_name_their_parent(tmp_path: Path) -> None:
    def recursive(request: ChatRequest) -> str:
        deeper = "Question: Top?" in request.messages[1]["content"] if len(request.messages) > 1 else False
        code = "rlm_query('inner')" if deeper else "'leaf'"
        return f"```repl\nanswer.update(content={code}, ready=True)\n```"

    logger = RLMLogger(log_dir=tmp_path)
    async with RLM(client=ScriptedClient(recursive), logger=logger, max_depth=2) as rlm:
        assert (await rlm.acompletion("outer", "Top?")).response == "leaf"
    starts = [event for event in read(logger.path) if event["type"] == "run_start"]
    assert [event["depth"] for event in starts] == [0, 1]
    assert starts[1]["parent"] == starts[0]["run"]
    assert starts[0]["parent"] is None


async def test_a_run_that_fails_has_its_end_in_the_log(tmp_path: Path) -> None:
    logger = RLMLogger(log_dir=tmp_path)
    client = ScriptedClient(lambda request: "```repl\nwhile True: pass\n```")
    async with RLM(client=client, logger=logger, max_timeout=0.5) as rlm:
        with pytest.raises(TimeoutExceededError) as caught:
            await rlm.acompletion("x", "What?")
    end = read(logger.path)[-1]
    assert end["type"] == "run_end"
    assert end["stop"] == "timeout"
    assert end["error"].startswith("TimeoutExceededError: ")
    assert caught.value.completion is not None
    assert caught.value.completion.metadata is not None


async def test_a_log_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = RLMLogger(log_dir=tmp_path / "logs")
    (tmp_path / "logs").rmdir()
    async with RLM(client=ScriptedClient(policy), logger=logger) as rlm:
        assert (await rlm.acompletion("x", "What?")).response == "done"
    assert "was lost" in caplog.text


def test_the_console_is_plain_when_piped(capfd: pytest.CaptureFixture[str]) -> None:
    with RLM(client=ScriptedClient(policy), verbose=True) as rlm:
        rlm.completion(CONTEXT, "What?")
    out, err = capfd.readouterr()
    assert out == ""
    assert "\x1b" not in err
    for word in ("What?", "str of 10,000", "llm_query", "ZeroDivisionError", "answered: done"):
        assert word in err


def test_the_console_has_colour_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(RichConsole(file=screen, force_terminal=True, width=80))
    cell = {
        "code": "x = [1]",
        "status": "ok",
        "stdout": "[bold]no markup[/bold]",
        "stderr": "",
        "error": None,
    }
    console.show({"type": "cell", "depth": 1, "seconds": 0.5, **cell})
    assert "\x1b[" in screen.getvalue()
    assert "[bold]no markup[/bold]" in screen.getvalue()
