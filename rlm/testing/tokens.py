"""Tokens of scripted models, counted by a rule, and a prefix cache like the one of a real server."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from rlm.testing.policy import message_text

CHARS_PER_TOKEN = 4
"""Characters of a token. Four is close to real tokenizers on English text."""

BLOCK_TOKENS = 64
"""Tokens of a block of the prefix cache, which holds whole blocks only. vLLM's blocks have 16 tokens; larger ones cost less."""

_MAX_BLOCKS = 2**18  # 64 MiB of text
_BLOCK_CHARS = BLOCK_TOKENS * CHARS_PER_TOKEN


def count_tokens(text: str) -> int:
    """The number of tokens of a text, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def render(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of a chat. It begins with the prompt of the chat's earlier turns."""
    turns = [f"<{m.get('role')}>{m.get('reasoning_content') or ''}{message_text(m)}</>" for m in messages]
    return "".join(turns) + "<assistant>"


class PrefixCache:
    """The beginnings of earlier prompts, in blocks. The least recently used block is dropped first."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def lookup(self, prompt: str) -> int:
        """The number of the prompt's tokens that are in the cache. The last token never counts: a server must compute it to
        continue from it."""
        known = 0
        for key in self._chain(prompt, (max(len(prompt) - 1, 0)) // _BLOCK_CHARS):
            if key not in self._blocks:
                break
            known += 1
        return known * BLOCK_TOKENS

    def store(self, text: str) -> None:
        """Adds a prompt with its reply."""
        for key in self._chain(text, len(text) // _BLOCK_CHARS):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > _MAX_BLOCKS:
            self._blocks.popitem(last=False)

    @staticmethod
    def _chain(text: str, blocks: int) -> list[int]:
        """One key for each block, a hash of all text up to the end of the block."""
        keys: list[int] = []
        key = 0
        for start in range(0, blocks * _BLOCK_CHARS, _BLOCK_CHARS):
            key = hash((key, text[start : start + _BLOCK_CHARS]))
            keys.append(key)
        return keys
