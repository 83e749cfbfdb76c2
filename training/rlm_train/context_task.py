"""Tasks whose context travels by reference."""

from __future__ import annotations

from typing import Any

import verifiers.v1 as vf

from rlm.context import Context


class ContextMismatchError(Exception):
    """What was materialised is not the context that the task describes."""


class ContextTaskData(vf.TaskData):
    """A question about a context that is not in the task: the task holds how to get it, and its hash.

    An orchestrator ships task data as JSON with every rollout and writes it into every trace, so the text
    itself must stay out. A subclass adds fields that say where the context comes from (a generator's
    arguments, a file and a row) and implements `materialise`. `prompt` is the question.
    """

    context_kind: str = "str"
    """Type of the context: "str", "bytes", "list", "tuple" or "dict"."""
    context_size: int
    """Characters of a str, bytes of bytes, items of the rest."""
    context_sha256: str
    """As `rlm.context.Context` computes it."""
    category: str | None = None
    """What reports group by, such as the type of the question."""

    def materialise(self) -> Any:
        """The context, the same on every machine. Runs in a thread beside the event loop; may be slow."""
        raise NotImplementedError(f"{type(self).__name__} does not implement materialise()")

    def build_context(self) -> Context:
        """The context, encoded and checked.

        Raises:
            ContextMismatchError: it is not the one that the task describes.
        """
        context = Context.of(self.materialise())
        if context.sha256 != self.context_sha256:
            raise ContextMismatchError(
                f"the context of task {self.name or self.idx} has the hash {context.sha256}, and the task says "
                f"{self.context_sha256}: the data or the generator changed since the task was made"
            )
        return context

    @staticmethod
    def describe_context(value: Any) -> dict[str, Any]:
        """The fields that describe `value`: context_kind, context_size, context_sha256."""
        return {f"context_{key}": item for key, item in Context.of(value).describe().items()}
