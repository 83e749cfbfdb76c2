"""One question of OOLONG as a verifiers task: its data, its rewards and its check."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from typing import TYPE_CHECKING, ClassVar

import verifiers.v1 as vf
from pydantic import Field

from oolong import gold_check
from oolong.example import Example
from oolong.scoring import scorers, strict
from rlm_train.context_task import ContextTaskData
from rlm_train.rewards import RLMTask, RLMTaskConfig
from rlm_train.rollout_info import answer_of

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace


class OolongTaskConfig(RLMTaskConfig):
    """Settings of a task's rewards; see also `rlm_train.rewards`."""

    numeric_tolerance: float = Field(default=0.1, gt=0, le=1)
    """For the reward `numeric`: an answer earns nothing from this distance on, as a share of the right number."""


class OolongData(ContextTaskData, Example):  # type: ignore[misc] # frozen, as Example is: verifiers configures its base so
    """An `Example` as verifiers' task data: its fields, and those that verifiers and a scorer add."""

    id: str
    prompt: str
    scorer: scorers.Scorer
    """Rule by which answers are scored."""
    num_labels: int
    """Labels of the context; 0 where they are not known."""

    materialise = Example.materialise

    @classmethod
    def of(cls, example: Example, scorer: scorers.Scorer) -> OolongData:
        fields = {field.name: getattr(example, field.name) for field in dataclasses.fields(Example)}
        kind = example.answer_type.lower()
        return cls(
            **fields,
            name=f"{example.task_group} {kind} {example.context_size:,} chars",
            category=f"{example.task_group}: {kind.replace('_', '-')}",
            num_labels=len(example.labels),
            scorer=scorer,
        )


class OolongTask(RLMTask[OolongData, OolongTaskConfig]):
    """Scores the answer that the RLM set, and reads nothing else that it wrote."""

    OPTIONAL: ClassVar[frozenset[str]] = RLMTask.OPTIONAL | {"numeric"}

    @property
    def key(self) -> str:
        """Identifies the question. It does not depend on the place in the taskset, so what a trainer has learned about a task
        stays true when the taskset grows or is put in another order."""
        digest = hashlib.sha256(f"{self.data.context_sha256}\n{self.data.question}".encode()).hexdigest()
        return f"{self.data.id}-{digest[:12]}"

    @vf.reward
    async def correct(self, task: OolongData, trace: AnyTrace) -> float:
        """How right the answer is, from 0 to 1, by the task's scorer; see `oolong.scoring.scorers`."""
        return scorers.score(answer_of(trace), task, task.scorer)

    @vf.reward(weight=0.0)
    async def numeric(self, task: OolongData, trace: AnyTrace) -> float:
        """The part of `oolong.scoring.strict.nearness` that exceeds `correct`; 0 for answers that are not numbers."""
        near = strict.nearness(answer_of(trace), task, self.config.numeric_tolerance)
        return max(0.0, near - scorers.score(answer_of(trace), task, task.scorer))

    @vf.metric
    async def exact(self, task: OolongData, trace: AnyTrace) -> float:
        """1 if the score is full, else 0. A number that is only near has a score below 1."""
        return float(scorers.score(answer_of(trace), task, task.scorer) == 1.0)

    @vf.metric
    async def curriculum(self, task: OolongData) -> dict[str, float]:
        """Figures of the task's difficulty. Their means show which tasks a curriculum chooses."""
        return {
            "context_size": float(task.context_size),
            "n_rows": float(task.n_rows),
            "num_labels": float(task.num_labels),
        }

    async def validate(self, runtime: vf.Runtime) -> bool | None:
        """Counts the right answers again from the labelled text, and scores them. None for the published rows: known defects
        make some of their answers wrong.

        Raises:
            GoldError: the recorded answers are not the right ones.
        """
        if self.data.mode == "published":
            return None
        await asyncio.to_thread(gold_check.verify, self.data)
        return scorers.score(self.data.answer[0], self.data, self.data.scorer) == 1.0
