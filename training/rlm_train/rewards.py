"""Rewards of RLM rollouts: the reward for a right answer, optional penalties, and gates.

A task derives from `RLMTask` and has a reward named `correct`, from 0 to 1. All other rewards are off until the task's
configuration, `taskset.task`, gives them a weight or a bound; `docs/rewards.md` lists them. They are only negative, so
only a right answer earns anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast

import verifiers.v1 as vf
from pydantic import Field, FiniteFloat
from typing_extensions import TypeVar

from rlm.types import StopReason
from rlm_train.rollout_info import RolloutInfo

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

CORRECT = "correct"
"""Name of the reward for a right answer."""

_CUT_SHORT = {
    StopReason.MAX_ITERATIONS,
    StopReason.TIMEOUT,
    StopReason.TOKEN_LIMIT,
    StopReason.CONTEXT_LENGTH,
}


class GatesConfig(vf.BaseConfig):
    """Conditions for a rollout's reward to count. A rollout that misses a bound keeps its penalties, and its other rewards
    become 0. Then the metric `gated` is 1, and so is `gate_<name>` for each bound that it missed. `ungated_reward` is the
    reward without gates."""

    min_iterations: int | None = Field(default=None, ge=1)
    """Least number of turns of the root."""
    min_subcalls: int | None = Field(default=None, ge=1)
    """Least number of answered sub-calls and child runs, at every depth, as the engine counts them."""
    min_reward: FiniteFloat | None = Field(default=None, gt=0)
    """Least sum of the weighted rewards."""


class RLMTaskConfig(vf.TaskConfig):
    """Settings of a task's rewards. `rewards.<name>.weight` is verifiers' setting; `gates` is ours."""

    gates: GatesConfig = GatesConfig()
    """Bounds below which a rollout earns nothing. By default none is set."""


DataT = TypeVar("DataT", bound=vf.TaskData)
ConfigT = TypeVar("ConfigT", bound=RLMTaskConfig, default=RLMTaskConfig)


class RLMTask(vf.Task[DataT, vf.State, vf.TaskConfig], Generic[DataT, ConfigT]):
    """A task whose rewards a configuration can change. A subclass adds the reward `correct`, and may add others.

    The rewards in `OPTIONAL` have the weight 0, and are not recorded, until the configuration gives them a weight up to 1.
    """

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"format", "no_answer", "truncated"})
    """Names of the rewards that are off by default. A subclass adds the names of its own."""

    config: ConfigT

    def __init__(self, data: DataT, config: ConfigT | None = None) -> None:
        """
        Raises:
            ValueError: the configuration names an unknown reward, metric or stop, or gives a wrong weight.
        """
        kind = type(self).config_type()
        # None, or verifiers' own class, from a taskset that does not name a subclass of `RLMTaskConfig`.
        if not isinstance(config, kind):
            config = cast(ConfigT, kind.model_validate({} if config is None else config.model_dump()))
        super().__init__(data, config)
        self.check(config)

    @classmethod
    def config_type(cls) -> type[RLMTaskConfig]:
        found = super().config_type()
        return found if issubclass(found, RLMTaskConfig) else RLMTaskConfig

    @classmethod
    def check(cls, config: vf.TaskConfig) -> None:
        """Refuses settings that would fail, or do harm, in the middle of a run. A taskset's configuration calls this in a
        validator, so that a wrong file is refused when it is read.

        Raises:
            ValueError: see the constructor.
        """
        from verifiers.v1.utils.loaders import plugged_fn

        for kind, entries in (
            ("reward", config.rewards),
            ("metric", config.metrics),
            ("stop", config.stops),
        ):
            for name, entry in entries.items():
                if entry.fn is not None:
                    try:
                        plugged_fn(entry.fn)
                    except (ImportError, TypeError, ValueError, OSError) as error:
                        raise ValueError(f"{kind} {name!r}: {error}") from error
                elif name not in (known := cls._names(kind)):
                    raise ValueError(
                        f"there is no {kind} {name!r}: there is {', '.join(known) or 'none'}; a {kind} of your own needs an fn"
                    )
        for name, reward in config.rewards.items():
            weight = reward.weight
            if reward.fn is None and name in cls.OPTIONAL and weight is not None and not 0 <= weight <= 1:
                raise ValueError(f"the weight of {name!r} must be from 0 to 1, and is {weight:g}")

    @classmethod
    def _names(cls, kind: str) -> list[str]:
        return [name for name in dir(cls) if getattr(getattr(cls, name), kind, None) is True]

    def hooks(self, attr: str) -> list[Callable[..., Any]]:
        """verifiers' list of rewards, metrics or stops, without rewards whose weight is 0."""
        found: list[Callable[..., Any]] = super().hooks(attr)
        if attr != "reward":
            return found
        return [hook for hook in found if hook.__name__ not in self.OPTIONAL or _weight(hook) != 0]

    async def score(self, trace: AnyTrace, runtime: vf.Runtime | None = None) -> None:
        await super().score(trace, runtime)
        if not getattr(self, "scoring_deferred", False):  # from 0.4 on
            apply_gates(self.config.gates, trace)

    @vf.reward(weight=0.0)
    async def format(self, trace: AnyTrace) -> float:
        """Minus the share of root turns whose reply held no code that could run."""
        info = RolloutInfo.of(trace)
        return -info.idle_turns / info.stats.turns if info.stats.turns else 0.0

    @vf.reward(weight=0.0)
    async def no_answer(self, trace: AnyTrace) -> float:
        """-1 if the rollout ended without an answer, unless the cause was a failure outside of the model's control."""
        info = RolloutInfo.of(trace)
        where = "limit" if info.failure is None else info.failure.where
        # Code can end its own REPL, but not before the first turn.
        own = where == "limit" or (where == "repl" and info.stats.turns > 0)
        return -1.0 if own and not info.answer else 0.0

    @vf.reward(weight=0.0)
    async def truncated(self, trace: AnyTrace) -> float:
        """-1 if the token limit of a call cut a root reply, or turns, time, tokens or the model's window ran out."""
        info = RolloutInfo.of(trace)
        return -float(info.stats.truncated > 0 or info.stop in _CUT_SHORT)


def _weight(hook: Callable[..., Any]) -> float:
    return float(getattr(hook, "_vf_weight", 1.0))


def apply_gates(gates: GatesConfig, trace: AnyTrace) -> None:
    """Sets the positive rewards of a scored trace to 0 if it misses a bound, and records the metrics of `GatesConfig`.

    Penalties stay, so that missing a bound is never a way to avoid them. Without bounds nothing is changed or recorded.
    """
    stats = RolloutInfo.of(trace).stats
    reached = {
        "min_iterations": stats.turns,
        "min_subcalls": stats.subcalls - stats.subcall_failures,
        "min_reward": trace.reward,
    }
    bounds = {name: bound for name, bound in gates if bound is not None}
    if not bounds:
        return
    missed = {name: reached[name] < bound for name, bound in bounds.items()}
    trace.record_metric("ungated_reward", trace.reward)
    trace.record_metric("gated", float(any(missed.values())))
    for name, miss in missed.items():
        trace.record_metric(f"gate_{name}", float(miss))
    if any(missed.values()):
        for name, reward in trace.rewards.items():
            if reward is not None and reward.value > 0:
                trace.record_reward(name, 0.0, reward.weight)
