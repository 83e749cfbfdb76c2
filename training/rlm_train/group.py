"""Several attempts at one task, compared: the only place where a rollout's cost can be judged against its siblings'."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import verifiers.v1 as vf
from pydantic import Field, model_validator

from rlm_train.rewards import CORRECT
from rlm_train.rollout_info import stats_of

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

    AnyTask: TypeAlias = vf.Task[Any, Any, Any]
    AnyEpisode: TypeAlias = vf.Episode[Any, Any, Any]


class CostsConfig(vf.BaseConfig):
    """Prices, each a reward named `<name>_cost`. Only attempts with a full `correct` pay: the one that took least pays
    nothing, the others their distance from it as a share of the most that one took, times the weight."""

    turns: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the root's turns."""
    subcalls: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of sub-calls and child runs. In published runs priced sub-calls made models stop delegating, before they
    had learned to."""

    @model_validator(mode="after")
    def _check(self) -> CostsConfig:
        if (total := sum(weight for _, weight in self)) >= 1:
            raise ValueError(
                f"costs must come to less than 1, or a right answer is worth none; these are {total:g}"
            )
        return self


class RLMGroupConfig(vf.EnvConfig):
    """Settings of `RLMGroup`."""

    agent: vf.AgentConfig = vf.AgentConfig()
    """The seat that all attempts play."""
    attempts: int = Field(default=4, ge=2)
    """Rollouts of a task in one episode. A trainer that groups by episode has a group size of 1 then."""
    max_concurrent_agents: int | None = Field(default=None, ge=1)
    """Attempts of one episode that run at once; None: all."""
    costs: CostsConfig = CostsConfig()
    """What right attempts pay; nothing by default."""


class RLMGroup(vf.Env[RLMGroupConfig]):
    """Any taskset, attempted several times in one episode: the environment id `rlm-train`.

    verifiers and prime-rl score each rollout by itself, and see the group only after the rewards are set; an episode with
    several traces is their way of comparing rollouts.
    """

    async def run(self, task: AnyTask, agents: vf.Agents) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.config.attempts):
                group.create_task(agents.agent.run(task))

    async def finalize(self, task: AnyTask, episode: AnyEpisode) -> None:
        """Adds the costs, and the metric `group_correct`: the share of attempts that were right."""
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
    """What each rollout took more than the thriftiest of them, as a share from 0 to 1 of the most that one took.

    Args:
        name: a count of `rlm.types.RunStats`, such as "turns".
    """
    taken = [stats_of(trace).get(name, 0) for trace in traces]
    most = max(taken, default=0)
    return [(count - min(taken)) / most if most else 0.0 for count in taken]


def _is_right(trace: AnyTrace) -> bool:
    reward = trace.rewards.get(CORRECT)
    return trace.ok and reward is not None and reward.score >= 1
