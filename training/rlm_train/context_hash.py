"""The check of a context that was made again from its description."""

from __future__ import annotations


class ContextMismatchError(ValueError):
    """A context that was made again differs from the one that its task was made for."""


def check_context(task: str, found: str, recorded: str) -> None:
    """Compares the SHA-256 of a context with the one that its task records.

    Args:
        task: name of the task, for the error.
        found: SHA-256 of the context, in hexadecimal digits.
        recorded: SHA-256 in the task's description.

    Raises:
        ContextMismatchError: the two hashes differ.
    """
    if found != recorded:
        raise ContextMismatchError(
            f"the context of task {task} has the SHA-256 {found}, and the task records {recorded}: "
            "the data or the generator changed since the task was made"
        )
