"""The messages of a run, and the observation that the model gets after its code ran."""

from __future__ import annotations

from collections.abc import Sequence

from rlm.repl.interface import CellResult
from rlm.types import Message

_MAX_NAMES = 20


class History:
    """The messages of a run: system, user, assistant, user, assistant, ...

    Earlier messages never change, each turn has exactly one user message, and a reply is sent back exactly as it came. So
    prefix caches hit, and a rollout is one sequence of tokens. Only a compaction starts a new list.
    """

    def __init__(self, system: str | None, first: str) -> None:
        """
        Args:
            system: the system prompt; None: no system message.
            first: the first user message.
        """
        self._system, self._first = system, first
        self._messages: list[Message] = []
        self._full: list[Message] = []
        self._begin(first)
        self._full += self._messages

    @property
    def messages(self) -> list[Message]:
        """A copy of the list; the messages themselves are shared."""
        return list(self._messages)

    @property
    def full(self) -> list[Message]:
        """A copy of all messages, those before compactions included."""
        return list(self._full)

    def compact(self, notes: str) -> None:
        """Starts a new list: the system prompt, and the first message with `notes` at its end."""
        self._expect("user")
        self._begin(f"{self._first}\n\n{notes}")

    def _begin(self, first: str) -> None:
        self._messages = [{"role": "user", "content": first}]
        if self._system is not None:
            self._messages.insert(0, {"role": "system", "content": self._system})

    def add_reply(self, reply: Message) -> None:
        self._expect("user")
        self._append(reply)

    def add_observation(self, text: str) -> None:
        self._expect("assistant")
        self._append({"role": "user", "content": text})

    def _append(self, message: Message) -> None:
        self._messages.append(message)
        self._full.append(message)

    def _expect(self, role: str) -> None:
        last = self._messages[-1]["role"]
        if last != role:
            raise AssertionError(f"the history must alternate: the last message is by the {last}")


def observation(cells: Sequence[CellResult], notes: Sequence[str]) -> str:
    """The user message after a turn: the output of each cell, then the notes. It holds no times, so that equal replies get
    equal observations."""
    parts = []
    for number, cell in enumerate(cells, 1):
        title = "Output" if len(cells) == 1 else f"Output of block {number}"
        parts.append(f"{title}:\n{_cell_text(cell)}")
    parts.extend(notes)
    return "\n\n".join(parts)


def _cell_text(cell: CellResult) -> str:
    streams = [cell.stdout.rstrip("\n"), cell.stderr.rstrip("\n")]
    # The traceback of an exception holds its error line already. The error of a cell that the REPL stopped is shown here.
    if cell.error is not None and cell.error not in cell.stderr:
        streams.append(f"[{cell.error}]")
    text = "\n".join(stream for stream in streams if stream)
    return text or f"(no output){_names(cell)}"


def _names(cell: CellResult) -> str:
    if not cell.locals:
        return ""
    shown = [f"{name} ({kind})" for name, kind in list(cell.locals.items())[-_MAX_NAMES:]]
    more = len(cell.locals) - len(shown)
    return "\nVariables: " + ", ".join(shown) + (f", and {more} more" if more else "")
