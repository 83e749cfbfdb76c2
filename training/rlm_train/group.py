"""Several attempts at one task in one episode, so that the costs of its rollouts can be compared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import verifiers.v1 as vf
from pydantic import Field, model_validator

from rlm_train.rewards import CORRECT
from rlm_train.rollout_info import RolloutInfo

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

    AnyTask: TypeAlias = vf.Task[Any, Any, Any]
    AnyEpisode: TypeAlias = vf.Episode[Any, Any, Any]


class CostsConfig(vf.BaseConfig):
    """Weights of costs. Each cost is a reward named `<name>_cost`.

    Only attempts with a full `correct` pay. With m the smallest count among them and M the largest, an attempt with the
    count n pays weight * (n - m) / M.
    """

    turns: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the number of root turns."""
    subcalls: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the number of sub-calls and child runs. In published runs, a cost on sub-calls made models stop delegating
    before they had learned to delegate."""

    @model_validator(mode="after")
    def _check(self) -> CostsConfig:
        if (total := sum(weight for _, weight in self)) >= 1:
            raise ValueError(
                f"the weights of costs must add up to less than 1, and add up to {total:g}: a right answer would earn nothing"
            )
        return self


class RLMGroupConfig(vf.EnvConfig):
    """Settings of `RLMGroup`."""

    agent: vf.AgentConfig = vf.AgentConfig()
    """The agent that makes all attempts."""
    attempts: int = Field(default=4, ge=2)
    """Rollouts of a task in one episode. Give a trainer that groups by episode a group size of 1."""
    max_concurrent_agents: int | None = Field(default=None, ge=1)
    """Most attempts of one episode that run at once; None: all."""
    costs: CostsConfig = CostsConfig()
    """Costs that right attempts pay; none by default."""


class RLMGroup(vf.Env[RLMGroupConfig]):
    """Attempts each task of any taskset several times in one episode. Its environment id is `rlm-train`.

    verifiers and prime-rl score each rollout alone, and see its group only after the rewards are set. Rollouts can be
    compared in an episode that has several traces.
    """

    async def run(self, task: AnyTask, agents: vf.Agents) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.config.attempts):
                group.create_task(agents.agent.run(task))

    async def finalize(self, task: AnyTask, episode: AnyEpisode) -> None:
        """Records the costs, and the metric `group_correct`: the share of right attempts."""
        right = [trace for trace in episode.traces if _is_right(trace)]
        for trace in episode.traces:
            trace.record_metric("group_correct", len(right) / len(episode.traces))
        for name, weight in self.config.costs:
            if not weight:
                continue
            costs = dict(zip((trace.id for trace in right), relative_costs(right, name), strict=True))
            for trace in episode.traces:
                trace.record_reward(f"{name}_cost", -costs.get(trace.id, 0.0), weight)


def relative_costs(traces: Sequence[AnyTrace], name: str) -> list[float]:
    """The difference between each rollout's count and the smallest count, as a share of the largest count, from 0 to 1.

    Args:
        traces: rollouts of one task.
        name: a count of `rlm.types.RunStats`, such as "turns".
    """
    taken = [getattr(RolloutInfo.of(trace).stats, name) for trace in traces]
    most = max(taken, default=0)
    return [(count - min(taken)) / most if most else 0.0 for count in taken]


def _is_right(trace: AnyTrace) -> bool:
    reward = trace.rewards.get(CORRECT)
    return trace.ok and reward is not None and reward.score >= 1
