"""The policy that solves OOLONG without a language model: for tests, benchmarks, and the environment's check of itself.

The root is scripted, and knows only what a model sees of a task: the question in the first message, and its code's output in
the observations. Its code looks at the context, parses and filters the lines, has sub-models label their texts, checks that
no label is missing, and aggregates. The root looks at the result and answers. `oolong.policies.labeller.Labeller` is the
sub-model.

The policy keeps no state between requests: each reply follows from the request's messages. So any number of rollouts may run
at once, and equal requests get equal replies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oolong.policies import reference_cells
from oolong.policies.labeller import Labeller
from oolong.policies.reading import Reading, labels_in_header, read

if TYPE_CHECKING:
    from rlm.testing import ChatRequest

CHUNK_CHARS = 8_000
"""Characters of text in one prompt to a sub-model: few enough for a small model to read line by line."""

MAX_TRIES = 3
"""Attempts at one step. After the last one the policy continues with the results that it has."""


class ReferencePolicy:
    """Solves OOLONG. Give it to `rlm.testing` as a policy."""

    def __init__(
        self,
        *,
        accuracy: float = 0.95,
        seed: int = 0,
        sources: Sequence[str] | None = None,
        chunk_chars: int = CHUNK_CHARS,
    ) -> None:
        """
        Args:
            accuracy, seed, sources: arguments of the sub-model, `Labeller`.
            chunk_chars: characters of text in one labelling prompt.

        Raises:
            ValueError: the accuracy is not from 0 to 1.
        """
        self.labeller = Labeller(accuracy=accuracy, seed=seed, sources=sources)
        self.chunk_chars = chunk_chars

    def __call__(self, request: ChatRequest) -> str:
        messages = request.messages
        if is_root(messages):
            return self.root(messages)
        return self.labeller.reply(text_of(messages[-1]) if messages else "")

    def root(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The root's next reply.

        Args:
            messages: the chat so far: system, user, assistant, user, ...
        """
        seen = [text_of(message) for message in messages if message.get("role") == "user"]
        first, observations = (seen[0], seen[1:]) if seen else ("", [])
        reading = read(first)
        if reading is None:
            return _block("I know no question of this form.", reference_cells.set_answer('"unknown"'))
        progress = ReadingProgress.of(reading, observations)
        last = seen[-1]
        if "no more code will run" in last:
            return progress.candidate or "unknown"
        steps = progress.steps(self.chunk_chars)
        if re.search(r"Turn (\d+)/\1\b", last):
            code = "\n".join([*steps.values(), reference_cells.set_answer("candidate")])
            return _block("This is the last turn, so I do all that is left at once.", code)
        if not steps:
            return _block(
                f"The candidate follows from what I have seen. I answer: {progress.candidate}",
                reference_cells.set_answer(progress.quoted),
            )
        say, code = next(iter(steps.items()))
        return _block(say, code)


class ReadingProgress:
    """The steps that a rollout has done, as its observations show."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.labels = reading.labels
        self.probed = False
        self.parsed = False
        self.labelled = not reading.needs_labels
        self.missing = 0
        self.candidate: str | None = None
        self.tries = 0

    @classmethod
    def of(cls, reading: Reading, observations: Sequence[str]) -> ReadingProgress:
        progress = cls(reading)
        for observation in observations:
            progress.see(observation)
        return progress

    @property
    def quoted(self) -> str:
        return repr(self.candidate or "unknown")

    def see(self, observation: str) -> None:
        """Takes in one observation. A step without the expected output is repeated, up to `MAX_TRIES` times."""
        before = (self.probed, self.parsed, self.labelled, self.candidate)
        if not self.probed:
            self.probed = "|| Instance: " in observation
            header = labels_in_header(observation)
            # The header lists all labels. A question may list only the labels of its part of the lines.
            self.labels = header or self.labels
        elif not self.parsed:
            self.parsed = re.search(r"\d+ lines, \d+ to consider", observation) is not None
        elif not self.labelled:
            if found := re.search(r"labelled \d+ of \d+ texts, (\d+) missing", observation):
                self.missing = int(found[1])
                self.labelled = self.missing == 0
        elif self.candidate is None and (found := re.search(r"(?m)^candidate: (.*)$", observation)):
            self.candidate = found[1]
        if before != (self.probed, self.parsed, self.labelled, self.candidate):
            self.tries = 0
            return
        self.tries += 1
        if self.tries >= MAX_TRIES:
            self.tries = 0
            if not self.probed:
                self.probed = True
            elif not self.parsed:
                self.parsed = True
            elif not self.labelled:
                self.labelled = True
            else:
                self.candidate = "unknown"

    def steps(self, chunk_chars: int) -> dict[str, str]:
        """The steps that are left before the answer: the sentence that introduces each, and its code."""
        steps: dict[str, str] = {}
        if not self.probed:
            steps["First I look at how the context is built."] = reference_cells.PROBE
        if not self.parsed:
            steps[
                "Every line has a date, a user and a text. I parse them and keep the lines that the question is about."
            ] = reference_cells.parse(self.reading)
        if not self.labelled:
            if self.missing:
                steps[f"{self.missing} texts came back without a label. I ask for those again."] = (
                    reference_cells.AGAIN
                )
            else:
                steps[
                    "Labels need reading: I give chunks of the texts to sub-models and check that every text got one."
                ] = reference_cells.label(self.labels, chunk_chars)
        if self.candidate is None:
            steps["Now I aggregate, and look at the candidate before I answer."] = reference_cells.aggregate(
                self.reading, self.labels
            )
        return steps


def _block(say: str, code: str) -> str:
    return f"{say}\n\n```repl\n{code}\n```"


def is_root(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a request comes from a run with a REPL, and not from a sub-call: its first user message counts turns."""
    first = next((text_of(message) for message in messages if message.get("role") == "user"), "")
    return re.search(r"(?m)^Turn 1/\d+", first) is not None


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


policy = ReferencePolicy()
"""The policy with its default accuracy, for `python -m rlm.testing oolong.policies.reference:policy`."""
