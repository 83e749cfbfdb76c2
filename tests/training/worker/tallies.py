"""A taskset for the tests of environment workers, which import it by name. Each context is unmistakable, and the reward is for
naming the rollout's own context."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import verifiers.v1 as vf

from rlm_train import ContextTaskData, RLMHarness

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

__all__ = ["RLMHarness", "TallyTaskset"]


class TallyData(ContextTaskData):
    """A context of lines that all hold its number."""

    number: int
    lines: int = 100

    def materialise(self) -> str:
        return text_of(self.number, self.lines)


class TallyTask(vf.Task[TallyData]):
    @vf.reward
    async def correct(self, task: TallyData, trace: AnyTrace) -> float:
        return float(trace.info["rlm"]["answer"] == f"{task.number} x {task.lines}")


class TallyTaskset(vf.Taskset[TallyTask, vf.TasksetConfig]):
    def load(self) -> Iterable[TallyTask]:
        return [TallyTask(data_of(number), self.config.task) for number in range(4)]


def text_of(number: int, lines: int) -> str:
    return f"number {number}\n" * lines


def data_of(number: int, lines: int = 100) -> TallyData:
    described: dict[str, Any] = TallyData.describe_context(text_of(number, lines))
    return TallyData(prompt=f"Which number, task {number}?", number=number, lines=lines, **described)
