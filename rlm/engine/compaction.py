"""Compaction: a history that nears the end of the model's window is replaced by notes that the model writes."""

from __future__ import annotations

from rlm.clients.base import ModelReply
from rlm.engine.history import History
from rlm.types import Message, text_of

ASSUMED_WINDOW = 128_000
"""Tokens of the window, if neither the server nor the client reports it."""

_REQUEST = (
    "Before the next turn your conversation is shortened: everything after the question will be replaced by notes, which you "
    "write now. Reply with the notes alone, as plain text, no code: what you found out (exact figures, names and quotes that "
    "matter), which variables of the REPL hold what, what you tried and what came of it, what is still to be done, and the "
    "best answer so far. The REPL and its variables stay as they are."
)
_MOST_KEPT = 8_000
"""Characters of the last observation that are kept."""


class Compactor:
    """Decides when a history is compacted, and writes the message that replaces it.

    Args:
        threshold: part of the window at which a history is compacted: above 0, at most 1.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._given_up = False

    def is_due(self, tokens: int, window: int | None, turns: int) -> bool:
        """Whether the history should be compacted now.

        Args:
            tokens: estimated tokens of the next prompt.
            window: tokens of the model's window; None: unknown.
            turns: turns since the history began or was compacted. With 0 turns there is nothing to compact but the notes.
        """
        limit = self._threshold * (ASSUMED_WINDOW if window is None else window)
        return tokens >= limit and turns > 0 and not self._given_up

    def settle(self, tokens: int, window: int | None) -> None:
        """Takes the length of the next prompt after a compaction, in tokens. If it is still over the threshold, the history is
        never compacted again."""
        self._given_up = tokens >= self._threshold * (ASSUMED_WINDOW if window is None else window)

    @staticmethod
    def request(history: History) -> list[Message]:
        """The messages that ask the model for its notes: its history, so that its prefix cache hits, with the request at the
        end of the last message."""
        *messages, last = history.messages
        return [*messages, {"role": "user", "content": f"{text_of(last['content'])}\n\n{_REQUEST}"}]

    @staticmethod
    def notes(history: History, reply: ModelReply | None) -> str:
        """The text that replaces the history.

        Args:
            reply: the reply to `request`; None if the call failed.
        """
        last = text_of(history.messages[-1]["content"])
        if len(last) > _MOST_KEPT:
            half = _MOST_KEPT // 2
            left_out = len(last) - 2 * half
            last = f"{last[:half]}\n... [{left_out:,} characters left out] ...\n{last[-half:]}"
        written = reply.content.strip() if reply is not None else ""
        notes = written or "(none could be written: look at your variables with SHOW_VARS())"
        return (
            "Your earlier turns were left out to save room; the whole conversation is the last item of `history` in the REPL. "
            f"Your notes:\n\n{notes}\n\nThe last output:\n\n{last}"
        )
