"""The taskset of `make bench-env`, which the environment worker imports by its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import verifiers.v1 as vf

from rlm_train import ContextTaskData, RLMHarness
from rlm_train.rollout_info import answer_of

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace

__all__ = ["BenchTaskset", "RLMHarness"]


class BenchData(ContextTaskData):
    """A context of `copies` lines. Its first line holds `number`, so that no two tasks share a context."""

    number: int
    copies: int

    def materialise(self) -> str:
        return text_of(self.number, self.copies)


class BenchTask(vf.Task[BenchData]):
    @vf.reward
    async def correct(self, task: BenchData, trace: AnyTrace) -> float:
        return float(answer_of(trace) == f"task {task.number}")


class BenchTaskset(vf.Taskset[BenchTask, vf.TasksetConfig]):
    def load(self) -> Iterable[BenchTask]:
        return [BenchTask(data_of(number, "?", 1000), self.config.task) for number in range(4)]


def data_of(number: int, question: str, copies: int) -> BenchData:
    described: dict[str, Any] = BenchData.describe_context(text_of(number, copies))
    return BenchData.model_validate({"prompt": question, "number": number, "copies": copies, **described})


def text_of(number: int, copies: int) -> str:
    return f"task {number}\n" + "The quick brown fox jumps over the lazy dog. 0123456789\n" * copies
