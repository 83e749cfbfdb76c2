"""Tokens of scripted models: counted by rule, and a prefix cache like that of a real server."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from rlm.testing.policy import message_text

CHARS_PER_TOKEN = 4
"""A token is four characters: near what tokenizers make of English, and the same everywhere."""

BLOCK_TOKENS = 64
"""The prefix cache knows whole blocks only (vLLM's has 16; larger ones cost less to count)."""

_MAX_BLOCKS = 2**18  # 64 MiB of text
_BLOCK_CHARS = BLOCK_TOKENS * CHARS_PER_TOKEN


def count_tokens(text: str) -> int:
    """Tokens of a text, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def render(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt that a chat becomes: extends the prompt of the chat's earlier turns."""
    turns = [f"<{m.get('role')}>{m.get('reasoning_content') or ''}{message_text(m)}</>" for m in messages]
    return "".join(turns) + "<assistant>"


class PrefixCache:
    """Which beginnings of prompts were seen before, in blocks, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def lookup(self, prompt: str) -> int:
        """How many of the prompt's tokens are in the cache. The last token never counts: a server has to compute
        it to go on from it."""
        known = 0
        for key in self._chain(prompt, (max(len(prompt) - 1, 0)) // _BLOCK_CHARS):
            if key not in self._blocks:
                break
            known += 1
        return known * BLOCK_TOKENS

    def store(self, text: str) -> None:
        """Remembers a prompt with its reply."""
        for key in self._chain(text, len(text) // _BLOCK_CHARS):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > _MAX_BLOCKS:
            self._blocks.popitem(last=False)

    @staticmethod
    def _chain(text: str, blocks: int) -> list[int]:
        """One key per block, each made from all the text up to its end."""
        keys: list[int] = []
        key = 0
        for start in range(0, blocks * _BLOCK_CHARS, _BLOCK_CHARS):
            key = hash((key, text[start : start + _BLOCK_CHARS]))
            keys.append(key)
        return keys
