"""The RLM engine as a verifiers harness."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

import verifiers.v1 as vf

from rlm import RLM
from rlm.clients.base import Client
from rlm.context import Context
from rlm.engine import prompts
from rlm.errors import RLMError
from rlm.logger import RLMLogger
from rlm.types import Message, RLMChatCompletion, RunStats, StopReason
from rlm_train import token_masks
from rlm_train.context_cache import shared_cache
from rlm_train.context_task import ContextTaskData
from rlm_train.direct_client import DirectClient, DirectUsage
from rlm_train.endpoint_client import EndpointClient
from rlm_train.failures import ContextUnavailableError, failure_of, storable
from rlm_train.garbage import settle
from rlm_train.harness_config import RLMHarnessConfig
from rlm_train.rollout_info import INFO_KEY

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

logger = logging.getLogger(__name__)


MAX_ANSWER_CHARS = 1_000_000
"""What is longer is cut: an answer travels in its trace through queues and files."""

# How a run that did not end by itself is called on the trace. The names that verifiers has for these events are used.
_STOP_CONDITIONS = {
    StopReason.TIMEOUT: "agent_timeout",
    StopReason.TOKEN_LIMIT: "max_total_tokens",
    StopReason.CONTEXT_LENGTH: "context_length",
    StopReason.STOPPED: "rollout_stopped",
    StopReason.ERROR_THRESHOLD: "rlm_error",
    StopReason.ERROR: "rlm_error",
}

# Seconds before verifiers' own deadline at which the engine stops: it then still says what it has.
_GRACE = 5.0


class RolloutEndedError(Exception):
    """Ends a rollout that has its result, but in which a model call failed.

    verifiers 0.3 calls a rollout failed, and does not score it, when its last model call failed and the harness
    returned normally. That call may have been one sub-call of hundreds. A harness that raises after the trace was
    stopped ends an ordinary, scored rollout in 0.3 and 0.4.
    """


class RLMHarness(vf.Harness[RLMHarnessConfig]):
    """Runs `rlm.RLM` in the worker's process, with its model calls going to the rollout's endpoint.

    A task with a `ContextTaskData` gives the context and, as its prompt, the question. Any other task's prompt is
    the context, as it is in `RLM.completion(prompt)`.

    What a rollout came to is data: `trace.info["rlm"]` has

    - `answer`: text of at most `MAX_ANSWER_CHARS`, empty if there is none; rewards read this and nothing else;
    - `stop`: why the run ended (`rlm.types.StopReason`);
    - `failure`: None, or `where` ("context", "repl", "model", "limit", "config", "engine", "cancelled"), `type` and
      `message`;
    - `stats` and `usage`: counts of the run (`rlm.types.RunStats`, `UsageSummary`), `seconds`;
    - `idle_turns`: root turns in whose reply there was no code that could run;
    - `direct`: with `train_subcalls = "direct"`, the model calls below the root (`rlm_train.direct_client.DirectUsage`);
    - `root_nodes`: ids of the trace's nodes that are the root's own; the others are of sub-calls and child runs.

    A rollout in which something failed is scored with the answer that it has.
    """

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = False
    SUPPORTS_SKILLS = False
    EXECUTES_CODE = True
    NEEDS_CONTAINER = False

    def __init__(self, config: RLMHarnessConfig) -> None:
        super().__init__(config)
        prompt = config.system_prompt
        self._own_system_prompt = None if prompt is None else prompt.read_text(encoding="utf-8")
        self._histories: dict[str, list[Message]] = {}

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: AnyTrace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        if self.config.settle_collector:
            settle()
        completion: RLMChatCompletion | None = None
        usage = DirectUsage() if self.config.train_subcalls == "direct" else None
        try:
            clients = await self._clients(ctx, trace, endpoint, secret, usage)
            context, question = await self._input(data)
            completion = await self._run(clients, trace, data, context, question)
            failure = None
        except asyncio.CancelledError as error:
            self._record(trace, None, failure_of(error), usage)
            raise
        except Exception as error:  # a failure of any kind is data on the trace
            failure = failure_of(error)
            completion = error.completion if isinstance(error, RLMError) else None
            log = logger.exception if failure["where"] == "engine" else logger.info
            log("rollout %s: %s: %s", trace.id, failure["type"], failure["message"])
        self._record(trace, completion, failure, usage)
        return self._end(trace, completion)

    async def cleanup(self, trace: AnyTrace, runtime: vf.Runtime) -> None:
        history = self._histories.pop(trace.id, None)
        if history is None:
            return  # it ran before: a second run would find the masks in place
        roots = token_masks.root_nodes(trace, history)
        token_masks.assign(trace, roots, self.config.train_subcalls)
        trace.info.get(INFO_KEY, {})["root_nodes"] = sorted(roots)

    @vf.metric
    async def rlm_stats(self, trace: AnyTrace) -> dict[str, float]:
        """`RunStats` by name; `failed`: 1 if there is a `failure`; `longest_branch`: tokens of the longest sequence, 0
        where a model server gave none. A trainer cuts what is longer than its `seq_len`, and says nothing."""
        info = trace.info.get(INFO_KEY) or {}
        stats = info.get("stats") or dataclasses.asdict(RunStats())
        return {
            **{name: float(value) for name, value in stats.items()},
            "failed": float(info.get("failure") is not None),
            "longest_branch": float(max((_tokens(branch) for branch in trace.branches), default=0)),
        }

    async def _input(self, data: vf.TaskData) -> tuple[Context, str | None]:
        if isinstance(data, ContextTaskData):
            try:
                context = await shared_cache(self.config.context_cache_bytes).get(data)
            except Exception as error:
                raise ContextUnavailableError(f"{type(error).__name__}: {error}") from error
            return context, data.prompt_text
        if isinstance(data.prompt, str):
            return Context.of(data.prompt), None
        messages = [message.model_dump(exclude_none=True) for message in data.prompt or ()]
        return Context.of(messages), None

    async def _clients(
        self,
        ctx: vf.ModelContext,
        trace: AnyTrace,
        endpoint: str,
        secret: str,
        usage: DirectUsage | None,
    ) -> tuple[Client, Client]:
        """The root's model, and that of all below it."""
        root = EndpointClient(ctx, endpoint, secret)
        if usage is not None:
            direct = DirectClient(ctx, usage)
            await direct.check()
            return root, direct
        if not token_masks.streams(trace):
            return root, root
        token_masks.mark_as_they_come(trace, self.config.train_subcalls)
        return root, EndpointClient(ctx, endpoint, secret, headers=token_masks.BELOW_HEADERS)

    async def _run(
        self,
        clients: tuple[Client, Client],
        trace: AnyTrace,
        data: vf.TaskData,
        context: Context,
        question: str | None,
    ) -> RLMChatCompletion:
        config = self.config
        rlm = RLM(
            client=clients[0],
            other_clients=clients[1:],
            environment="local",
            environment_kwargs={
                "cell_timeout": config.cell_timeout,
                "checkpoint_bytes": config.checkpoint_bytes,
                "isolation": config.isolation,
                "readable": config.readable,
                "hidden": config.hidden,
            },
            max_depth=config.max_depth,
            max_iterations=config.max_iterations,
            max_timeout=self._max_timeout(trace, data),
            max_tokens=config.max_tokens,
            max_errors=config.max_errors,
            max_concurrent_subcalls=config.max_concurrent_subcalls,
            max_concurrent_queries=config.max_concurrent_subcalls,
            custom_system_prompt=self._system_prompt(data),
            logger=self._logger(trace),
        )
        try:
            return await rlm.acompletion(context, root_prompt=question)
        finally:
            await rlm.aclose()

    def _max_timeout(self, trace: AnyTrace, data: vf.TaskData) -> float | None:
        limits = [self.config.max_timeout]
        agent = trace.agent.config.timeout.rollout
        if agent is None:
            agent = data.timeout.agent
        if agent is not None:
            limits.append(max(agent - _GRACE, 0.8 * agent))
        return min((limit for limit in limits if limit is not None), default=None)

    def _system_prompt(self, data: vf.TaskData) -> str | None:
        """The engine's prompt, or the configured one, then what the task and verifiers add; None: the engine's."""
        own = self._own_system_prompt
        if data.system_prompt is None:
            return own
        return f"{own or prompts.system_prompt()}\n\n{data.system_prompt}"

    def _logger(self, trace: AnyTrace) -> RLMLogger | None:
        folder = self.config.log_dir
        return None if folder is None else RLMLogger(folder, file_name=trace.id)

    def _record(
        self,
        trace: AnyTrace,
        completion: RLMChatCompletion | None,
        failure: dict[str, str] | None,
        direct: DirectUsage | None,
    ) -> None:
        self._histories[trace.id] = list(completion.messages) if completion is not None else []
        answer = storable(completion.response[:MAX_ANSWER_CHARS]) if completion is not None else ""
        trace.info[INFO_KEY] = {
            "answer": answer,
            "stop": (completion.stop if completion is not None else StopReason.ERROR).value,
            "failure": failure,
            "stats": dataclasses.asdict(completion.stats if completion is not None else RunStats()),
            "usage": completion.usage_summary.to_dict() if completion is not None else None,
            "seconds": completion.execution_time if completion is not None else 0.0,
            "idle_turns": sum(not turn.code_blocks for turn in completion.iterations) if completion else 0,
        }
        if direct is not None:
            trace.info[INFO_KEY]["direct"] = dataclasses.asdict(direct)
            # Where verifiers counts what was spent outside of the trace's own messages.
            trace.extra_usage.append(direct.as_verifiers())
        if "root_reply" in type(trace).model_fields:  # from 0.4 on: what judges see as the agent's reply
            trace.root_reply = answer

    def _end(self, trace: AnyTrace, completion: RLMChatCompletion | None) -> vf.ProgramResult:
        stop = completion.stop if completion is not None else StopReason.ERROR
        if stop in _STOP_CONDITIONS:
            trace.stop(_STOP_CONDITIONS[stop])
        if any(call.error is not None for call in trace.calls):
            trace.stop("agent_completed")
            raise RolloutEndedError
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


def _tokens(branch: vf.Branch) -> int:
    return sum(len(node.token_ids) for node in branch.nodes)
