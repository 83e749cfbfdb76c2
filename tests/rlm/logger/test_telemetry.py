"""Spans of runs: their tree, their attributes by the conventions, and when there are no spans."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rlm import RLM
from rlm.errors import ModelUnavailableError
from rlm.testing import Answer, ChatRequest, Fault, Reply, ScriptedClient, finish, repl_block
from rlm.types import Usage

EXPORTER = InMemorySpanExporter()


@pytest.fixture(scope="module")
def provider() -> Iterator[TracerProvider]:
    """The tracer provider of the process. A process can set it only once."""
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(EXPORTER))
    trace.set_tracer_provider(made)
    yield made
    made.shutdown()
    os.environ["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "rlm"  # no spans in later tests


@pytest.fixture(autouse=True)
def no_spans(provider: TracerProvider) -> None:
    EXPORTER.clear()


class Client(ScriptedClient):
    provider = "gemini"


def policy(request: ChatRequest) -> Answer:
    if request.is_subcall:
        if "fault" in request.text:
            return Fault(400, "no such thing")
        return Reply("sub reply", usage=Usage(7, 3, 0.25, 2), finish_reason="length")
    if "Question: Top?" not in request.messages[1]["content"]:
        return finish("llm_query('leaf')")
    codes = [
        "llm_query_batched(['one', 'fault'])\nlook_up('x')",
        "rlm_query('below')\n1/0",
        "answer.update(content='done', ready=True)",
    ]
    return Reply(repl_block(codes[request.turn], "I look."), usage=Usage(100, 20))


def spans() -> list[ReadableSpan]:
    return sorted(EXPORTER.get_finished_spans(), key=lambda span: span.start_time or 0)


def tree() -> Any:
    """The names of spans, each with the names of the spans below it, in the order in which they began."""
    found = spans()

    def below(parent: int | None) -> list[Any]:
        here = [span for span in found if (span.parent.span_id if span.parent else None) == parent]
        return [
            [span.name, *below(span.context.span_id)] if below(span.context.span_id) else span.name
            for span in here
            if span.context is not None
        ]

    return below(None)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def run(**options: Any) -> None:
    tools = {"look_up": lambda name: {"a": 1}[name]}
    clients: dict[str, Any] = {
        "client": Client(policy, model="big"),
        "other_clients": [Client(policy, model="small")],
    }
    async with RLM(**{**clients, **options}, custom_tools=tools, max_depth=2) as rlm:
        await rlm.acompletion("a secret text", "Top?")


async def test_spans_nest_like_runs_cells_and_calls() -> None:
    with trace.get_tracer("test").start_as_current_span("the caller"):
        await run()
    [[caller, run_tree]] = tree()
    assert caller == "the caller"
    name, *turns = run_tree
    assert name == "invoke_agent rlm"
    assert turns[0] == "chat big"
    assert turns[1][0] == "execute_tool repl"
    assert sorted(turns[1][1:]) == ["chat small", "chat small", "execute_tool look_up"]
    child = ["invoke_agent rlm", "chat small", ["execute_tool repl", "chat small"]]
    assert turns[2:] == ["chat big", ["execute_tool repl", child], "chat big", "execute_tool repl"]


async def test_the_attributes_of_spans_follow_the_conventions() -> None:
    await run(
        sampling_args={"temperature": 0.5, "top_p": 0.9, "stop": ["###"], "max_tokens": 4000, "seed": 3}
    )
    found = spans()
    run_span = next(span for span in found if span.parent is None)
    assert run_span.context is not None
    assert run_span.kind is SpanKind.INTERNAL
    about = attributes(run_span)
    identity = about["gen_ai.agent.id"]
    assert about == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "big",
        "gen_ai.agent.name": "rlm",
        "gen_ai.agent.id": identity,
        "gen_ai.conversation.id": identity,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.stop_sequences": ("###",),
        "gen_ai.request.max_tokens": 4000,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": about["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": about["gen_ai.usage.output_tokens"],
        "rlm.depth": 0,
        "rlm.stop": "answered",
        "rlm.subcalls": about["rlm.subcalls"],
        "rlm.turns": 3,
    }
    chats = [
        attributes(span) for span in found if span.name == "chat small" and span.status.is_ok is not False
    ]
    call = next(chat for chat in chats if "error.type" not in chat and "rlm.index" in chat)
    assert call["gen_ai.operation.name"] == "chat"
    assert call["gen_ai.response.model"] == "small"
    assert call["gen_ai.usage.input_tokens"] == 7
    assert call["gen_ai.usage.output_tokens"] == 3
    assert call["gen_ai.usage.cache_read.input_tokens"] == 2
    assert call["gen_ai.response.finish_reasons"] == ("length",)
    assert call["gen_ai.conversation.id"] == identity
    assert call["rlm.cost_usd"] == 0.25
    assert all(span.kind is SpanKind.CLIENT for span in found if span.name.startswith("chat "))
    cell = attributes(next(span for span in found if span.name == "execute_tool repl"))
    assert (cell["gen_ai.operation.name"], cell["gen_ai.tool.name"]) == ("execute_tool", "repl")
    assert (cell["gen_ai.tool.type"], cell["gen_ai.tool.call.id"]) == ("extension", f"{identity}.1.1")
    total = sum(
        attributes(span)["gen_ai.usage.input_tokens"] for span in found if span.name.startswith("chat ")
    )
    assert about["gen_ai.usage.input_tokens"] == total


async def test_a_span_lies_within_the_span_above_it() -> None:
    await run()
    by_id = {span.context.span_id: span for span in spans() if span.context is not None}
    for span in by_id.values():
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        if span.parent is not None:
            above = by_id[span.parent.span_id]
            assert above.start_time is not None
            assert above.end_time is not None
            # The duration and the end time come from two clocks, which are read one after the other.
            assert above.start_time - 5_000_000 <= span.start_time
            assert span.end_time <= above.end_time + 5_000_000


async def test_failed_calls_and_cells_are_marked_in_their_spans() -> None:
    await run()
    failed = {span.name: span for span in spans() if span.status.status_code is StatusCode.ERROR}
    kinds = {name: attributes(span)["error.type"] for name, span in failed.items()}
    assert kinds == {
        "chat small": "ModelError",
        "execute_tool look_up": "_OTHER",
        "execute_tool repl": "KeyError"
        if "KeyError" in str(failed["execute_tool repl"].status)
        else "ZeroDivisionError",
    }
    assert "no such thing" in (failed["chat small"].status.description or "")


async def test_a_failed_run_is_marked_in_its_span() -> None:
    with pytest.raises(ModelUnavailableError):
        await run(client=Client(lambda request: Fault(503, "gone"), model="big"))
    run_span = next(span for span in spans() if span.parent is None)
    assert run_span.status.status_code is StatusCode.ERROR
    assert attributes(run_span)["error.type"] == "ModelUnavailableError"
    assert attributes(run_span)["rlm.stop"] == "error"


async def test_a_limit_ends_the_span_of_the_cell_that_it_stopped() -> None:
    client = Client(lambda request: repl_block("while True: pass"))
    async with RLM(client=client, max_timeout=0.4) as rlm:
        with pytest.raises(Exception, match="max_timeout"):
            await rlm.acompletion("x", "Top?")
    run_span = next(span for span in spans() if span.parent is None)
    [event] = run_span.events
    assert (event.name, dict(event.attributes or {})) == ("rlm.limit", {"error.type": "TimeoutExceededError"})
    [cell] = [span for span in spans() if span.name == "execute_tool repl"]
    assert attributes(cell)["error.type"] == "interrupted"


async def test_texts_are_recorded_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    await run()
    plain = json.dumps([attributes(span) for span in spans()])
    for text in ("I look", "sub reply", "look_up('x')", "Top?", "one"):
        assert text not in plain.replace("look_up", "").replace("invoke_agent", ""), text
    EXPORTER.clear()
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    monkeypatch.setenv("MY_API_KEY", "sub reply")  # nine characters
    await run()
    found = spans()
    run_span = attributes(next(span for span in found if span.parent is None))
    [message] = json.loads(run_span["gen_ai.input.messages"])
    assert message["role"] == "user"
    assert "Question: Top?" in message["parts"][0]["content"]
    assert json.loads(run_span["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "done"}], "finish_reason": "answered"}
    ]
    assert json.loads(run_span["gen_ai.system_instructions"])[0]["type"] == "text"
    call = next(
        attributes(span) for span in found if span.name == "chat small" and "rlm.index" in attributes(span)
    )
    assert json.loads(call["gen_ai.output.messages"])[0]["parts"][0]["content"] in ("[redacted]", "")
    cell = attributes(next(span for span in found if span.name == "execute_tool repl"))
    assert json.loads(cell["gen_ai.tool.call.arguments"])["code"].startswith("llm_query_batched")
    assert "KeyError" in json.loads(cell["gen_ai.tool.call.result"])["stderr"]


async def test_concurrent_runs_have_separate_traces() -> None:
    await asyncio.gather(run(), run(), run())
    assert len(tree()) == 3
    assert len({span.context.trace_id for span in spans() if span.context is not None}) == 3


def test_the_current_span_of_the_calling_thread_is_the_parent() -> None:
    client = Client(lambda request: finish("'x'"), model="m")
    with trace.get_tracer("test").start_as_current_span("the caller"), RLM(client=client) as rlm:
        rlm.completion("x", "Top?")
    assert tree() == [["the caller", ["invoke_agent rlm", "chat m", "execute_tool repl"]]]


async def test_spans_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "flask, rlm")
    await run()
    assert spans() == []


_WITHOUT = """
import sys
from rlm import RLM
from rlm.testing import ScriptedClient
{imports}
code = "```repl\\nanswer.update(content='x', ready=True)\\n```"
with RLM(client=ScriptedClient(lambda request: code)) as rlm:
    assert rlm.completion("x", "What?").response == "x"
from rlm.logger import telemetry
assert telemetry.listener() is None
print("opentelemetry" in sys.modules)
"""


@pytest.mark.parametrize(("imports", "loaded"), [("", "False"), ("import opentelemetry.trace", "True")])
def test_without_a_tracer_provider_there_are_no_spans_and_no_import(imports: str, loaded: str) -> None:
    program = _WITHOUT.format(imports=imports)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded
