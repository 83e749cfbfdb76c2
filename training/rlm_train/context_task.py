"""Tasks whose context travels by reference."""

from __future__ import annotations

from typing import Any

import verifiers.v1 as vf

from rlm.context import Context
from rlm_train.context_hash import check_context


class ContextTaskData(vf.TaskData):
    """A question, and the description of the context that it is about.

    An orchestrator sends task data as JSON with every rollout and writes it into every trace, so the context itself
    stays out. A subclass adds fields that say where the context comes from (a generator's arguments, or a file and a
    row), and implements `materialise`. `prompt` is the question.
    """

    context_kind: str = "str"
    """Type of the context: "str", "bytes", "list", "tuple" or "dict"."""
    context_size: int
    """Size of the context: characters of a str, bytes of a bytes, items of the other types."""
    context_sha256: str
    """SHA-256 as `rlm.context.Context` computes it; for a str that of its UTF-8 form."""
    category: str | None = None
    """Group of the task in reports, such as the type of its question."""

    def materialise(self) -> Any:
        """Makes the context, the same on every machine. Runs in a thread beside the event loop, so it may be slow."""
        raise NotImplementedError(f"{type(self).__name__} does not implement materialise()")

    def build_context(self) -> Context:
        """Makes the context, encodes it and checks its hash.

        Raises:
            ContextMismatchError: the context is not the one that the task describes.
        """
        context = Context.of(self.materialise())
        check_context(str(self.name or self.idx), context.sha256, self.context_sha256)
        return context

    @staticmethod
    def describe_context(value: Any) -> dict[str, Any]:
        """The fields that describe the context `value`: context_kind, context_size, context_sha256."""
        return {f"context_{key}": item for key, item in Context.of(value).describe().items()}
