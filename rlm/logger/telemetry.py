"""OpenTelemetry spans of runs, by the semantic conventions for generative AI (version 1.41).

    invoke_agent rlm                 a run
      chat <model>                   a model call of the run
      execute_tool repl              a cell
        chat <model>                 a sub-call
        execute_tool <name>          a custom tool
        invoke_agent rlm             a child run

Spans are made only if the program has set a tracer provider (`opentelemetry.trace.set_tracer_provider`, or
`opentelemetry-instrument`). A program that has not imported OpenTelemetry does not import this module. `OTEL_SDK_DISABLED=true`
switches off all of OpenTelemetry, `OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=rlm` these spans alone. The current span of the caller
of a completion is the parent of its run.

Prompts and replies are recorded only with OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true (or SPAN_ONLY,
SPAN_AND_EVENT). `rlm._redaction` takes secrets out of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rlm._redaction import Redactor
from rlm.events import (
    Cell,
    CellStart,
    Compaction,
    Event,
    LimitReached,
    Reply,
    RunEnd,
    RunStart,
    Subcall,
    ToolCall,
)
from rlm.logger.run_tree import RunTree
from rlm.types import Usage

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, Tracer

AGENT = "rlm"
REPL_TOOL = "repl"

_PROVIDERS = {
    "azure_openai": "azure.ai.openai",
    "gemini": "gcp.gemini",
}
"""Providers that have another name in the conventions than in `rlm.clients`."""
_SAMPLING = {
    "frequency_penalty": float,
    "max_tokens": int,
    "presence_penalty": float,
    "seed": int,
    "temperature": float,
    "top_k": float,
    "top_p": float,
}


def listener() -> Callable[[Event], None] | None:
    """Returns a function that makes the spans of one completion from its events, or None if the program wants no spans. The
    span that is current at this call becomes the parent of the completion's span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or "rlm" in _switched_off():
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return _Spans(provider.get_tracer("rlm", _version()), capture=_captures()).take


def _switched_off() -> list[str]:
    names = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    return [name.strip() for name in names.split(",")]


def _captures() -> bool:
    value = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "")
    return value.strip().lower() in ("true", "span_only", "span_and_event")


def _version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # takes a while to import

    try:
        return version("rlms")
    except PackageNotFoundError:
        return None


class _Spans:
    """The spans of one completion."""

    def __init__(self, tracer: Tracer, *, capture: bool) -> None:
        from opentelemetry import context

        self._tracer = tracer
        self._capture = capture
        self._redactor = Redactor()
        self._caller = context.get_current()
        self._tree = RunTree(whole=False)
        self._runs: dict[str, Span] = {}
        """Open spans of runs, by the run's id."""
        self._cells: dict[str, Span] = {}
        """Open spans of cells, by the run's id."""

    def take(self, event: Event) -> None:
        """Makes, changes or ends the span of one event of the completion."""
        if isinstance(event, Subcall):
            self._subcall(event)  # before the tree drops the child run
        self._tree.take(event)
        match event:
            case RunStart():
                self._run_start(event)
            case Reply():
                self._chat(event, self._runs.get(event.run))
            case CellStart():
                self._cell_start(event)
            case Cell():
                self._cell(event)
            case ToolCall():
                self._tool(event)
            case Compaction():
                data = {"rlm.tokens_before": event.tokens_before, "rlm.tokens_after": event.tokens_after}
                self._note(event, "rlm.compaction", data)
            case LimitReached():
                self._note(event, "rlm.limit", {"error.type": event.error_type})
            case RunEnd():
                self._run_end(event)

    def _run_start(self, event: RunStart) -> None:
        above = event.parent or ""
        attributes = {
            **self._common("invoke_agent", event.model),
            "gen_ai.agent.name": AGENT,
            "gen_ai.agent.id": event.run,
            "gen_ai.conversation.id": event.run if self._tree.root is None else self._tree.root.start.run,
            "rlm.depth": event.depth,
            **_sampling(event.sampling),
        }
        if self._capture:
            attributes["gen_ai.system_instructions"] = self._parts(event.system_prompt)
            attributes["gen_ai.input.messages"] = self._messages("user", event.first_message)
        parent = self._cells.get(above) or self._runs.get(above)
        name = f"invoke_agent {AGENT}"
        self._runs[event.run] = self._start(name, attributes, parent, event.time)

    def _run_end(self, event: RunEnd) -> None:
        cell = self._cells.pop(event.run, None)
        if cell is not None:  # the run ended while the cell ran
            cell.end(_ns(event.time))
        span = self._runs.pop(event.run, None)
        if span is None:
            return
        span.set_attribute("rlm.stop", event.stop)
        span.set_attribute("rlm.turns", event.stats.turns)
        if event.depth == 0:
            # Sums of the whole tree, so only on the root's span.
            stats = event.stats
            span.set_attributes(
                {
                    "gen_ai.usage.input_tokens": stats.root_input_tokens + stats.sub_input_tokens,
                    "gen_ai.usage.output_tokens": stats.root_output_tokens + stats.sub_output_tokens,
                    "rlm.subcalls": stats.subcalls,
                }
            )
        if self._capture:
            span.set_attribute(
                "gen_ai.output.messages", self._messages("assistant", event.response, event.stop)
            )
        if event.error is not None and not event.stats.answered:
            kind, _, text = event.error.partition(": ")
            self._fail(span, kind, text)
        span.end(_ns(event.time))

    def _chat(self, event: Reply | Subcall, parent: Span | None) -> None:
        run = self._tree.runs.get(event.run)
        sampling: dict[str, Any] = {}
        if run is not None:
            sampling = run.start.sampling if isinstance(event, Reply) else run.start.sub_sampling
        attributes = {
            **self._common("chat", event.model),
            "gen_ai.response.model": event.model,
            **_sampling(sampling),
            **_usage(event.usage),
        }
        if self._tree.root is not None:
            attributes["gen_ai.conversation.id"] = self._tree.root.start.run
        if event.finish_reason is not None:
            attributes["gen_ai.response.finish_reasons"] = (event.finish_reason,)
        if event.retries:
            attributes["rlm.retries"] = event.retries
        if isinstance(event, Reply):
            attributes["rlm.turn"], attributes["rlm.purpose"] = event.turn, event.purpose
            content = event.content
        else:
            attributes["rlm.batch"], attributes["rlm.index"] = event.batch, event.index
            content = event.response
            if self._capture:
                attributes["gen_ai.input.messages"] = self._messages("user", event.prompt_head)
        if self._capture:
            attributes["gen_ai.output.messages"] = self._messages("assistant", content, event.finish_reason)
        self._done(f"chat {attributes['gen_ai.request.model']}", attributes, parent, event, client=True)

    def _subcall(self, event: Subcall) -> None:
        parent = self._cells.get(event.run) or self._runs.get(event.run)
        run = self._tree.runs.get(event.run)
        if run is not None and event.call in run.children:
            return  # the child run has a span of its own
        if event.request is not None or event.error is None:
            self._chat(event, parent)
        else:  # refused before a model was asked
            attributes = self._common("chat", event.model)
            self._done(f"chat {attributes['gen_ai.request.model']}", attributes, parent, event, client=True)

    def _cell_start(self, event: CellStart) -> None:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": REPL_TOOL,
            "gen_ai.tool.type": "extension",
            "gen_ai.tool.call.id": f"{event.run}.{event.turn}.{event.number}",
        }
        if self._capture:
            attributes["gen_ai.tool.call.arguments"] = self._json({"code": event.code})
        parent = self._runs.get(event.run)
        self._cells[event.run] = self._start(f"execute_tool {REPL_TOOL}", attributes, parent, event.time)

    def _cell(self, event: Cell) -> None:
        span = self._cells.pop(event.run, None)
        if span is None:
            return
        span.set_attribute("rlm.cell.status", event.status)
        if self._capture:
            result = {"stdout": event.stdout, "stderr": event.stderr}
            span.set_attribute("gen_ai.tool.call.result", self._json(result))
        if event.error is not None:
            kind = event.error.partition(":")[0] if event.status == "error" else event.status
            self._fail(span, kind, event.error)
        span.end(_ns(event.time))

    def _tool(self, event: ToolCall) -> None:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": event.name,
            "gen_ai.tool.type": "function",
        }
        parent = self._cells.get(event.run) or self._runs.get(event.run)
        self._done(f"execute_tool {event.name}", attributes, parent, event)

    def _note(self, event: Event, name: str, attributes: dict[str, Any]) -> None:
        span = self._runs.get(event.run)
        if span is not None:
            span.add_event(name, attributes, _ns(event.time))

    def _common(self, operation: str, model: str) -> dict[str, Any]:
        root = self._tree.root
        known = {} if root is None else root.start.models.get(model, {})
        provider = known.get("provider") or "_OTHER"
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
            "gen_ai.request.model": known.get("model", model),
        }

    def _start(
        self,
        name: str,
        attributes: dict[str, Any],
        parent: Span | None,
        start: float,
        *,
        client: bool = False,
    ) -> Span:
        from opentelemetry import trace

        context = self._caller if parent is None else trace.set_span_in_context(parent, self._caller)
        kind: SpanKind = trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
        return self._tracer.start_span(name, context, kind, attributes, start_time=_ns(start))

    def _done(
        self,
        name: str,
        attributes: dict[str, Any],
        parent: Span | None,
        event: Reply | Subcall | ToolCall,
        *,
        client: bool = False,
    ) -> None:
        """Makes a span of a call that has ended."""
        span = self._start(name, attributes, parent, event.time - event.seconds, client=client)
        if event.error is not None:
            kind = "_OTHER" if isinstance(event, ToolCall) else event.error_type
            self._fail(span, kind or "_OTHER", event.error)
        span.end(_ns(event.time))

    def _fail(self, span: Span, kind: str, text: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, self._redactor.text(text)))

    def _parts(self, text: str) -> str:
        return self._json([{"type": "text", "content": text}])

    def _messages(self, role: str, text: str, finish_reason: str | None = None) -> str:
        message: dict[str, Any] = {"role": role, "parts": [{"type": "text", "content": text}]}
        if role == "assistant":
            message["finish_reason"] = finish_reason or "stop"
        return self._json([message])

    def _json(self, data: Any) -> str:
        return json.dumps(self._redactor.data(data))


def _usage(usage: Usage) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if usage.cached_tokens:
        attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.cost is not None:
        attributes["rlm.cost_usd"] = usage.cost
    return attributes


def _sampling(given: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, kind in _SAMPLING.items():
        value = given.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            attributes[f"gen_ai.request.{name}"] = kind(value)
    stop = given.get("stop")
    if stop:
        attributes["gen_ai.request.stop_sequences"] = (
            (stop,) if isinstance(stop, str) else tuple(map(str, stop))
        )
    return attributes


def _ns(seconds: float) -> int:
    """Seconds since 1970 as nanoseconds."""
    return int(seconds * 1e9)
