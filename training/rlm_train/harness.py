"""The RLM engine as a verifiers harness."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

import verifiers.v1 as vf

from rlm import RLM
from rlm.clients.base import Client
from rlm.clients.message_parts import sendable
from rlm.context import Context
from rlm.engine import prompts
from rlm.errors import RLMError
from rlm.logger import RLMLogger
from rlm.types import Message, RLMChatCompletion, StopReason
from rlm_train import token_masks
from rlm_train.context_cache import shared_cache
from rlm_train.context_task import ContextTaskData
from rlm_train.direct_client import DirectClient, verifiers_usage
from rlm_train.endpoint_client import EndpointClient
from rlm_train.garbage_collector import settle_collector
from rlm_train.harness_config import RLMHarnessConfig
from rlm_train.rollout_failures import ContextUnavailableError, failure_of
from rlm_train.rollout_info import DirectUsage, RolloutFailure, RolloutInfo

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

logger = logging.getLogger(__name__)

MAX_ANSWER_CHARS = 1_000_000
"""Longer answers are cut, because an answer travels in its trace through queues and files."""

# Stop conditions on the trace for runs that did not end by themselves, under verifiers' names where they exist.
_STOP_CONDITIONS = {
    StopReason.TIMEOUT: "agent_timeout",
    StopReason.TOKEN_LIMIT: "max_total_tokens",
    StopReason.CONTEXT_LENGTH: "context_length",
    StopReason.STOPPED: "rollout_stopped",
    StopReason.ERROR_THRESHOLD: "rlm_error",
    StopReason.ERROR: "rlm_error",
}

# The engine stops this many seconds before verifiers' own deadline, so that it can still return its result.
_GRACE = 5.0


class RolloutEndedError(Exception):
    """Ends a rollout that has its result, but in which a model call failed.

    If the last model call failed and the harness returns normally, verifiers 0.3 treats the whole rollout as failed and
    does not score it. That call may be one sub-call of hundreds. If the harness first stops the trace and then raises,
    verifiers 0.3 and 0.4 score the rollout as usual.
    """


class RLMHarness(vf.Harness[RLMHarnessConfig]):
    """Runs `rlm.RLM` in the worker's process, with its model calls going to the rollout's endpoint.

    A `ContextTaskData` gives the context, and its prompt is the question. The prompt of any other task is the context,
    as in `RLM.completion(prompt)`.

    The outcome of a rollout is stored in `trace.info["rlm"]`; `rlm_train.rollout_info.RolloutInfo` describes it. A
    rollout in which something failed is scored with the answer that it has.
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
            settle_collector()
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
            log = logger.exception if failure.where == "engine" else logger.info
            log("rollout %s: %s: %s", trace.id, failure.type, failure.message)
        self._record(trace, completion, failure, usage)
        return self._end(trace, completion)

    async def cleanup(self, trace: AnyTrace, runtime: vf.Runtime) -> None:
        history = self._histories.pop(trace.id, None)
        if history is None:
            return  # this method has run before, and the masks are set
        roots = token_masks.root_nodes(trace, history)
        token_masks.assign(trace, roots, self.config.train_subcalls)
        dataclasses.replace(RolloutInfo.of(trace), root_nodes=sorted(roots)).store(trace)

    @vf.metric
    async def rlm_stats(self, trace: AnyTrace) -> dict[str, float]:
        """`rlm.types.RunStats` by name; `failed`: 1 if something failed; `longest_branch`: tokens of the longest sequence, 0
        if the model server sent no token ids. A trainer silently cuts sequences that are longer than its `seq_len`."""
        info = RolloutInfo.of(trace)
        return {
            **{name: float(value) for name, value in dataclasses.asdict(info.stats).items()},
            "failed": float(info.failure is not None),
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
        """The client of the root, and the client of all calls below it."""
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
        """The configured prompt, or else the engine's, followed by the task's own. None: the engine's prompt alone."""
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
        failure: RolloutFailure | None,
        direct: DirectUsage | None,
    ) -> None:
        self._histories[trace.id] = list(completion.messages) if completion is not None else []
        if completion is None:
            info = RolloutInfo(stop=StopReason.ERROR.value, failure=failure, direct=direct)
        else:
            info = RolloutInfo(
                # A trace with a lone surrogate cannot be sent: such an answer would take the rollout out of its group.
                answer=sendable(completion.response[:MAX_ANSWER_CHARS]),
                stop=completion.stop.value,
                failure=failure,
                stats=completion.stats,
                usage=completion.usage_summary.to_dict(),
                seconds=completion.execution_time,
                idle_turns=sum(not turn.code_blocks for turn in completion.iterations),
                direct=direct,
            )
        info.store(trace)
        if direct is not None:
            # verifiers' place for usage outside of the trace's own messages.
            trace.extra_usage.append(verifiers_usage(direct))
        if "root_reply" in type(trace).model_fields:  # from 0.4 on: the agent's reply, as judges see it
            trace.root_reply = info.answer

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
