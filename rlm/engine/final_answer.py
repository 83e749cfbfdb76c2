"""The answer of a run so far, and whether it ends the run."""

from __future__ import annotations

from rlm.engine.answer_format import AnswerFormat
from rlm.repl.interface import AnswerState


class FinalAnswer:
    """The answer that a run returns.

    Args:
        answer_format: the form that it must have; None: any text.
    """

    def __init__(self, answer_format: AnswerFormat | None) -> None:
        self._format = answer_format
        self.content = ""
        """The text of the answer so far, ready or not."""
        self.done = False
        """Whether the code has set the answer ready, and it has the form."""
        self.parsed: object = None
        """The answer as the object that the form asks for."""
        self.problem: str | None = None
        """What is wrong with the form of an answer that the code set ready in this turn."""

    @property
    def instructions(self) -> str | None:
        """The model's instructions on the form; None: there is no form."""
        return None if self._format is None else self._format.instructions

    def check(self, text: str) -> str | None:
        """Reads a text as the answer into `parsed`. Returns what is wrong with its form, or None."""
        if self._format is None:
            return None
        self.parsed, problem = self._format.parse(text)
        return problem

    def update(self, answer: AnswerState) -> bool:
        """Takes the variable `answer` after a cell. Returns whether the turn ends here, because the answer is ready: either the
        run is done, or the model must first be told the `problem`."""
        self.content = answer.content
        if not (answer.ready and answer.content):
            return False
        self.problem = self.check(answer.content)
        self.done = self.problem is None
        return True
