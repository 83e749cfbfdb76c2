"""Rollouts of `RLMHarness`: the trace of a good rollout, and of one in which something fails."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import verifiers.v1 as vf
from pydantic import ValidationError

from rlm import RLM
from rlm.engine import prompts
from rlm.environments import Environment
from rlm.errors import REPLError
from rlm.testing import ChatRequest, Fault, ModelServer, Reply, Script, finish, repl_block
from rlm_train import RLMHarnessConfig

ANSWER = finish("str(len(context.split()))")
ASK = repl_block('replies = llm_query_batched(["one", "two"])\nprint(replies)')


def with_subcalls(*turns: Any) -> Script:
    """A policy whose root follows a script, and whose sub-models repeat their prompts."""
    return Script(turns, subcalls=lambda request: f"echo {request.text}")


async def test_a_rollout_is_scored_and_described(run: Any) -> None:
    trace = await run(with_subcalls(ASK, ANSWER))
    info = trace.info["rlm"]
    assert trace.ok
    assert trace.errors == []
    assert trace.reward == 1.0
    assert trace.stop_condition == "agent_completed"
    assert (info["answer"], info["stop"], info["failure"]) == ("3", "answered", None)
    assert trace.metrics["turns"] == 2
    assert trace.metrics["cells"] == 2
    assert trace.metrics["subcalls"] == 2
    assert trace.metrics["answered"] == 1
    assert trace.metrics["failed"] == 0
    assert trace.metrics["sub_output_tokens"] > 0
    assert info["usage"]["model_usage_summaries"]["scripted"]["total_calls"] == 4
    assert "apple" not in trace.model_dump_json(exclude={"nodes"})


async def test_root_nodes_are_those_of_the_roots_messages(run: Any) -> None:
    trace = await run(with_subcalls(ASK, ANSWER))
    roots = trace.info["rlm"]["root_nodes"]
    roles = [trace.nodes[node].message.role for node in roots]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    others = [node.message.content for i, node in enumerate(trace.nodes) if i not in roots]
    assert sorted(others) == ["echo one", "echo two", "one", "two"]


async def test_replies_with_reasoning_are_root_nodes(run: Any) -> None:
    trace = await run(with_subcalls(Reply(ASK, reasoning="first ask"), Reply(ANSWER, reasoning="then count")))
    sampled = [node for node in trace.info["rlm"]["root_nodes"] if trace.nodes[node].sampled]
    assert len(sampled) == 2


async def test_child_runs_are_below_the_root(run: Any) -> None:
    ask_child = repl_block('print(rlm_query("count the letters"))')
    child = finish('"7"')

    def policy(request: ChatRequest) -> str:
        if "count the letters" not in request.text and "of 17 characters" in request.messages[1]["content"]:
            return child
        return ask_child if request.turn == 0 else ANSWER

    trace = await run(policy, max_depth=2)
    roots = trace.info["rlm"]["root_nodes"]
    below = [i for i, node in enumerate(trace.nodes) if node.sampled and i not in roots]
    assert [trace.nodes[i].message.content for i in below] == [child]
    assert trace.reward == 1.0


async def test_the_last_model_call_may_fail_and_the_rollout_is_scored(run: Any) -> None:
    broken = Fault(400, "out of order")
    trace = await run(with_subcalls(ASK, broken))
    failure = trace.info["rlm"]["failure"]
    assert trace.ok
    assert trace.rewards["correct"].score == 0.0
    assert trace.stop_condition == "rlm_error"
    assert (failure["where"], failure["type"]) == ("model", "ModelError")
    assert "out of order" in failure["message"]
    assert trace.metrics["turns"] == 1
    assert trace.metrics["failed"] == 1


async def test_a_failed_last_subcall_leaves_the_rollout_scored(run: Any) -> None:
    code = finish(
        "len(context.split())", 'reply = llm_query("break")\nassert isinstance(reply, SubcallError)'
    )
    trace = await run(Script([code], subcalls=lambda request: Fault(400, "no")))
    assert trace.ok
    assert trace.reward == 1.0
    assert trace.stop_condition == "agent_completed"
    assert trace.metrics["subcall_failures"] == 1


async def test_an_answer_that_was_not_ready_is_scored_when_the_model_fails(run: Any) -> None:
    trace = await run(with_subcalls(repl_block('answer["content"] = "3"'), Fault(400, "gone")))
    assert trace.info["rlm"]["answer"] == "3"
    assert trace.reward == 1.0
    assert trace.metrics["answered"] == 0


async def test_a_trace_with_any_answer_can_be_sent(run: Any) -> None:
    """Otherwise a policy could withdraw its bad rollouts from their groups."""
    for answer, kept in [
        ("'3\\ud800'", "3\ufffd"),
        ("'\\ud83d\\ude00'", "\U0001f600"),
        ("'9' * 3_900_000", "9" * 1_000_000),
    ]:
        trace = await run(Script([finish(answer)]))
        assert trace.info["rlm"]["answer"] == kept
        assert len(trace.model_dump_json()) < 2_500_000


async def test_a_trace_with_any_failure_can_be_sent(run: Any) -> None:
    trace = await run(Script([repl_block('raise ValueError("\\ud800")')]), max_errors=1)
    assert trace.info["rlm"]["stop"] == "error_threshold"
    assert trace.model_dump_json()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [("gone", "OSError", "the disk is gone"), ("changed", "ContextMismatchError", "the generator changed")],
)
async def test_a_context_that_cannot_be_made_is_a_failure_on_the_trace(
    run: Any, task: Any, fault: str, kind: str, words: str
) -> None:
    trace = await run(Script([ANSWER]), task(fault=fault, copies=7))
    failure = trace.info["rlm"]["failure"]
    assert trace.ok
    assert trace.rewards["correct"].score == 0.0
    assert (failure["where"], failure["type"]) == ("context", kind)
    assert words in failure["message"]


async def test_a_repl_that_cannot_start_is_a_failure_on_the_trace(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nowhere(Environment):
        async def open(self, *_: Any) -> Any:
            raise REPLError("no process could be started")

    monkeypatch.setattr("rlm.environments.make_environment", lambda *_, **__: Nowhere())
    trace = await run(Script([ANSWER]))
    assert trace.ok
    assert trace.info["rlm"]["failure"] == {
        "where": "repl",
        "type": "REPLError",
        "message": "no process could be started",
    }


async def test_a_bug_in_the_engine_is_a_failure_with_its_traceback(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("unexpected")

    monkeypatch.setattr(RLM, "acompletion", fail)
    trace = await run(Script([ANSWER]))
    failure = trace.info["rlm"]["failure"]
    assert trace.ok
    assert (failure["where"], failure["type"]) == ("engine", "ZeroDivisionError")
    assert "in fail" in failure["traceback"]


async def test_the_agents_time_limit_leaves_a_scored_rollout(run: Any) -> None:
    trace = await run(
        with_subcalls(repl_block('answer["content"] = "3"'), Reply(ANSWER, delay=60)), timeout=6.0
    )
    assert trace.ok
    assert trace.stop_condition == "agent_timeout"
    assert trace.info["rlm"]["stop"] == "timeout", trace.info["rlm"]
    assert trace.reward == 1.0


async def test_the_limits_of_the_config_end_a_rollout(run: Any) -> None:
    trace = await run(with_subcalls(*[ASK] * 3, "It is 3."), max_iterations=3)
    assert trace.info["rlm"]["stop"] == "max_iterations"
    assert trace.metrics["forced_answer"] == 1
    trace = await run(with_subcalls(*[ASK] * 9), max_tokens=2500)
    assert trace.info["rlm"]["stop"] == "token_limit"
    assert trace.stop_condition == "max_total_tokens"
    assert trace.is_truncated
    trace = await run(with_subcalls(*[repl_block("1/0")] * 9), max_errors=2)
    assert trace.info["rlm"]["stop"] == "error_threshold"
    assert trace.metrics["cell_errors"] == 2


async def test_a_prompt_over_the_window_is_one_failed_item(run: Any) -> None:
    """It must not be sent, because verifiers 0.3 would end the whole rollout."""
    code = repl_block(
        'replies = llm_query_batched(["short", "long " * 10_000])\n'
        "print([isinstance(reply, SubcallError) for reply in replies])"
    )
    policy = with_subcalls(code, ANSWER)
    trace = await run(policy, server=ModelServer(policy, max_model_len=8_000))
    assert trace.ok
    assert trace.reward == 1.0
    assert trace.metrics["subcall_failures"] == 1
    assert not any(call.error for call in trace.calls)
    assert "[False, True]" in trace.nodes[trace.info["rlm"]["root_nodes"][3]].message.content


async def test_a_cancelled_rollout_leaves_nothing_behind(run: Any) -> None:
    started = asyncio.Event()
    seconds = f"{os.getpid()}.{time.monotonic_ns()}"  # unique, so that the child can be found
    tell = repl_block(f"import subprocess\nchild = subprocess.Popen(['sleep', {seconds!r}])")

    def policy(request: ChatRequest) -> Reply:
        if request.turn == 0:
            return Reply(tell)
        started.set()
        return Reply(ANSWER, delay=60)

    rollout = asyncio.ensure_future(run(policy))
    await started.wait()
    processes = psutil.Process().children(recursive=True)
    (child,) = [process for process in processes if process.cmdline() == ["sleep", seconds]]
    worker = child.parent()
    assert worker is not None
    rollout.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rollout
    assert not child.is_running()
    assert not worker.is_running()


async def test_rollouts_of_an_example_share_one_context(materialisations: list[str], task: Any) -> None:
    example = task(gold="3000", copies=1000)
    async with ModelServer(with_subcalls(ASK, ANSWER)) as server:
        config = vf.AgentConfig.model_validate(
            {
                "model": server.model,
                "client": {"type": "eval", "base_url": server.base_url, "api_key_var": "RLM_TEST_KEY"},
                "harness": {"id": "rlm-train"},
                "runtime": {"type": "subprocess"},
            }
        )
        # One agent per rollout, as verifiers makes them: each has its own harness object.
        agents = [vf.Agent(config) for _ in range(6)]
        traces = await asyncio.gather(*(agent.run(example) for agent in agents))
    assert [trace.reward for trace in traces] == [1.0] * 6
    assert len(materialisations) == 1


async def test_the_prompt_of_any_other_task_is_the_context(run: Any) -> None:
    trace = await run(Script([ANSWER]), vf.Task(vf.TaskData.model_validate({"prompt": "one two three four"})))
    assert trace.info["rlm"]["answer"] == "4"


async def test_the_tasks_system_prompt_follows_the_engines(run: Any, tmp_path: Path) -> None:
    task = vf.Task(vf.TaskData.model_validate({"prompt": "a b", "system_prompt": "Answer in digits."}))
    trace = await run(Script([ANSWER]), task)
    assert trace.nodes[0].message.content == f"{prompts.system_prompt()}\n\nAnswer in digits."
    file = tmp_path / "prompt.txt"
    file.write_text("Use {braces} freely.")
    trace = await run(Script([ANSWER]), task, system_prompt=file)
    assert trace.nodes[0].message.content == "Use {braces} freely.\n\nAnswer in digits."


async def test_an_event_log_is_written_to_log_dir(run: Any, tmp_path: Path) -> None:
    trace = await run(with_subcalls(ASK, ANSWER), log_dir=tmp_path / "logs")
    [file] = (tmp_path / "logs").glob("*.jsonl")
    events = [json.loads(line)["type"] for line in file.read_text().splitlines()]
    assert trace.id in file.name
    assert events[0] == "run_start"
    assert events[-1] == "run_end"
    assert events.count("subcall") == 2


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("train_subcalls", "masked", "'masked'"),
        ("train_subcalls", 0, "no effect"),
        ("train_subcalls", 1.5, r"\(0, 1\]"),
        ("train_subcalls", -0.5, r"\(0, 1\]"),
        ("max_iteration", 3, "max_iteration"),
        ("max_iterations", 0, "max_iterations"),
        ("cell_timeout", 0, "cell_timeout"),
        ("env", {"A": "b"}, "env has no effect"),
        ("disabled_tools", ["x"], "disabled_tools has no effect"),
        ("isolation", "none", "sandbox"),
        ("checkpoint_bytes", -1, "checkpoint_bytes"),
    ],
)
def test_invalid_settings_are_refused(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RLMHarnessConfig.model_validate({"id": "rlm-train", field: value})


def test_sandbox_settings_are_refused_without_a_sandbox() -> None:
    for setting in ({"readable": ["/data"]}, {"hidden": ["answers"]}):
        settings = {"id": "rlm-train", "isolation": "process", **setting}
        with pytest.raises(ValidationError, match="settings of a sandbox"):
            RLMHarnessConfig.model_validate(settings)


def test_settings_survive_a_trip_through_json() -> None:
    config = RLMHarnessConfig.model_validate({"id": "rlm-train", "train_subcalls": 0.25, "max_depth": 2})
    assert RLMHarnessConfig.model_validate_json(config.model_dump_json()) == config
    assert RLMHarnessConfig.model_validate({"train_subcalls": "0.25"}).train_subcalls == 0.25
