"""Reads a model's reply: the code to run, or why there is none."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

_OPENING = re.compile(
    r"""^(?P<indent>[ \t]*)
        (?:(?P<start>`{3,})[ \t]*repl\b[^`\n]*   # the fence begins the line: an info string may follow
        |  .*?(?P<inline>(?<!`)`{3,})[ \t]*repl[ \t]*)$  # text stands before it: nothing may follow
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CLOSING = re.compile(r"^[ \t]*(?P<ticks>`{3,})[ \t]*$")
_END_OF_THINKING = re.compile(r"""(?<!["'\\])</think>(?!["'\\])""")
"""Without quotes around it: the code may hold the tag in a string."""
_OTHER_FENCE = re.compile(r"^[ \t]*`{3,}[ \t]*(?P<tag>[\w+#.-]*)", re.MULTILINE)
_CELL_FLAGS = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

# Closing fences that are tried as the end of one block. More of them would make parsing slow.
_MAX_CLOSINGS = 32


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """The code of a reply, in the order in which it runs."""

    blocks: list[str]
    problem: str | None
    """A sentence for the model if code of the reply is not run, or if there is none; otherwise None."""


def parse_reply(text: str, *, truncated: bool = False) -> ParsedReply:
    """Finds the ```repl blocks of a reply.

    A fence may be indented, in upper case, longer than three backticks, or never closed. A fence inside the code (in a
    string, for example) does not end the block if the code is only complete at a later fence. Thinking before `</think>` is
    not run.

    Args:
        text: the reply.
        truncated: whether a token limit cut the reply. An unclosed block is then incomplete, and is not run.
    """
    visible = _after_thinking(text)
    # Not `splitlines`: it also splits at characters that may stand in a string of the code.
    lines = visible.replace("\r\n", "\n").removesuffix("\n").split("\n")
    blocks: list[str] = []
    cut = False
    number = 0
    while number < len(lines):
        opening = _OPENING.match(lines[number])
        if opening is None:
            number += 1
            continue
        ticks = opening["start"] or opening["inline"]
        closings = _closings(lines, number + 1, len(ticks))
        if not closings and truncated:
            cut = True
            break
        end = _end_of_block(lines, number + 1, closings)
        code = _dedent(lines[number + 1 : end], opening["indent"] if opening["start"] else "")
        if code.strip():
            blocks.append(code)
        number = end + 1
    return ParsedReply(blocks, _problem(text, visible, blocks, truncated=truncated, cut=cut))


def answer_text(text: str) -> str:
    """The text of a reply that is itself the answer, stripped and without the thinking."""
    return _after_thinking(text).strip()


def _after_thinking(text: str) -> str:
    end = _END_OF_THINKING.search(text)
    if end is not None:
        return text[end.end() :]
    return "" if text.lstrip().startswith("<think>") else text


def _closings(lines: list[str], start: int, width: int) -> list[int]:
    found = []
    for number in range(start, len(lines)):
        closing = _CLOSING.match(lines[number])
        if closing is not None and len(closing["ticks"]) >= width:
            found.append(number)
            if len(found) == _MAX_CLOSINGS:
                break
    return found


def _end_of_block(lines: list[str], start: int, closings: list[int]) -> int:
    """The line of the first closing fence at which the code is complete. If it never is, the first closing fence, so that the
    model sees its own syntax error."""
    if not closings:
        return len(lines)
    if len(closings) > 1:
        for end in closings:
            if _is_complete(_dedent(lines[start:end], "")):
                return end
    return closings[0]


def _is_complete(code: str) -> bool:
    try:
        compile(code, "<cell>", "exec", _CELL_FLAGS)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


def _dedent(lines: list[str], indent: str) -> str:
    """Removes the fence's indentation from the code, and then the indentation that all lines share."""
    stripped = [line.removeprefix(indent) for line in lines]
    # Not `textwrap.dedent`: it empties blank lines, which may be part of a string.
    margins = [line[: len(line) - len(line.lstrip(" \t"))] for line in stripped if line.strip(" \t")]
    shared, last = min(margins, default=""), max(margins, default="")
    while not last.startswith(shared):
        shared = shared[:-1]
    return "\n".join(line.removeprefix(shared) for line in stripped) + "\n"


def _problem(text: str, visible: str, blocks: list[str], *, truncated: bool, cut: bool) -> str | None:
    if cut:
        return (
            "Your reply was cut off by the token limit inside a ```repl block, and that block was not run. "
            "Write less prose and shorter blocks."
        )
    if blocks:
        return None
    if truncated:
        return (
            "Your reply was cut off by the token limit before it held any code, so nothing was run. "
            "Be brief: one short ```repl block."
        )
    if not text.strip():
        return "Your reply was empty, so nothing was run. Write one ```repl block."
    if not visible.strip():
        return (
            "Your reply ended while you were thinking, so nothing was run. Write one ```repl block after it."
        )
    tags = [match["tag"] for match in _OTHER_FENCE.finditer(visible) if match["tag"]]
    if tags and tags[0].lower() != "repl":
        return (
            f"Nothing was run: your code stood in a ```{tags[0]} block, and only ```repl blocks are run. "
            "Write the code again in a ```repl block."
        )
    return (
        "Nothing was run: your reply held no ```repl block with code. Write one; if you know the answer, set it there: "
        '`answer["content"] = ...` and `answer["ready"] = True`.'
    )
