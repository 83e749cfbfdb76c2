"""Replies of a root model, ready to be put into a policy."""

from __future__ import annotations


def repl_block(code: str, text: str = "") -> str:
    """A reply that runs code: `text`, then one ```repl block.

    Args:
        code: Python source. It must not hold a line of three backticks, which would end the block.
        text: what the reply says before the block.
    """
    return f"{text}\n```repl\n{code}\n```" if text else f"```repl\n{code}\n```"


def finish(expression: str, code: str = "") -> str:
    """A reply that ends the run with the value of a Python expression as its answer.

    `finish("len(context)")` answers with a length, `finish("'done'")` with the text `done`.

    Args:
        expression: Python source of the answer.
        code: Python source that runs first, in the same block.
    """
    return repl_block(f"{code}\nanswer.update(content={expression}, ready=True)".lstrip("\n"))


FINISH = finish("'done'")
"""A reply that ends the run with the answer `done`."""
