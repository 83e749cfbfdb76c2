"""A complete environment: how many of a shop's messages, one per line, are about a topic? Only reading tells, not code."""

import random
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from rlm_train import ContextTaskData, RLMHarness, RLMTask, RLMTaskConfig
from rlm_train.rollout_info import answer_of

MESSAGES = {
    "delivery": ["My parcel never came.", "Where is my order?", "The courier left it in the rain."],
    "login": ["The reset mail does not arrive.", "My password is wrong, it says.", "I am locked out."],
    "payment": ["I was charged twice.", "Please refund me.", "You took the money of a declined card."],
}


def draw(lines: int, seed: int) -> list[tuple[str, str]]:
    """Topics and messages, the same on every machine."""
    dice = random.Random(f"tickets {seed}")
    topics = dice.choices(sorted(MESSAGES), k=lines)
    return [(topic, dice.choice(MESSAGES[topic])) for topic in topics]


class TicketData(ContextTaskData):  # sent as JSON: the description of the context, not the context
    lines: int
    seed: int
    gold: str

    def materialise(self) -> str:
        return "\n".join(message for _, message in draw(self.lines, self.seed))


class TicketTask(RLMTask[TicketData]):  # has penalties and gates, which are off by default
    @vf.reward
    async def correct(self, task: TicketData, trace: vf.Trace[Any, Any, Any]) -> float:
        return float(answer_of(trace).strip() == task.gold)  # reads nothing else that the model wrote


class TicketConfig(vf.TasksetConfig):  # --env.taskset.lines 2000
    lines: int = 300
    num_tasks: int = 20
    task: RLMTaskConfig = RLMTaskConfig()


class TicketTaskset(vf.Taskset[TicketTask, TicketConfig]):
    def load(self) -> Iterator[TicketTask]:
        for seed in range(self.config.num_tasks):
            rows = draw(self.config.lines, seed)
            topic = sorted(MESSAGES)[seed % len(MESSAGES)]
            question = f"How many messages are about {topic}? Answer with the number alone."
            gold = str(sum(label == topic for label, _ in rows))
            known = TicketData.describe_context("\n".join(message for _, message in rows))
            data = TicketData(prompt=question, lines=len(rows), seed=seed, gold=gold, category=topic, **known)
            yield TicketTask(data, self.config.task)


__all__ = ["RLMHarness", "TicketTaskset"]  # one of each, so the id `tickets` is a complete environment
