"""Chats as tokens, in the format of Qwen3 (ChatML)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlm.testing import Reply


class NotAChatError(ValueError):
    """The tokens are not a chat that ends where a reply begins."""


class ChatEncoding:
    """Reads prompts made by a renderer of the Qwen3 family, and writes replies as a model would."""

    def __init__(self, tokenizer: Path | str, spell: bool) -> None:
        """
        Args:
            tokenizer: folder of the tokenizer, for transformers to load.
            spell: write replies character by character.
        """
        from transformers import AutoTokenizer

        loader: Any = AutoTokenizer
        self._tokenizer = loader.from_pretrained(str(tokenizer))
        self._spell = spell
        # A cache: a call of the tokenizer is slow even for one character.
        self._spelled: dict[str, list[int]] = {}
        self._start: int = self._tokenizer.convert_tokens_to_ids("<|im_start|>")
        self.end: int = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        """The token that ends a turn."""

    def messages(self, token_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Reads the messages of a prompt.

        Raises:
            NotAChatError: the tokens are not whole messages followed by the beginning of the assistant's next one.
        """
        vocabulary = len(self._tokenizer)
        if not all(0 <= token < vocabulary for token in token_ids):
            raise NotAChatError(f"token ids must be from 0 to {vocabulary - 1}")
        if token_ids[0] != self._start:
            raise NotAChatError("the prompt does not begin with a message")
        *whole, last = self._blocks(token_ids)
        if not self._text(last).startswith("assistant\n") or self.end in last:
            raise NotAChatError("the prompt does not end where the assistant's reply begins")
        if not whole:
            raise NotAChatError("the prompt has no message")
        return [self._message(block) for block in whole]

    def completion(self, reply: Reply, limit: int | None) -> tuple[list[int], str]:
        """Token ids of a reply and its finish reason: "length" if the limit cuts it, else the reply's own.

        Args:
            reply: the reply of the scripted model.
            limit: most tokens; None: no limit.
        """
        text = reply.content or ""
        if reply.reasoning is not None:
            text = f"<think>\n{reply.reasoning}\n</think>\n\n{text}"
        ids = [*self._encode(text), self.end]
        if limit is not None and len(ids) > limit:
            return ids[:limit], "length"
        return ids, reply.finish_reason

    def _blocks(self, token_ids: Sequence[int]) -> list[list[int]]:
        """The tokens of each message, split where messages begin."""
        blocks: list[list[int]] = []
        for token in token_ids:
            if token == self._start:
                blocks.append([])
            else:
                blocks[-1].append(token)
        return blocks

    def _message(self, block: list[int]) -> dict[str, Any]:
        if self.end not in block:
            raise NotAChatError("a message does not end")
        inner = block[: block.index(self.end)]
        role, _, content = self._text(inner).partition("\n")
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and content.startswith("<think>"):
            thought, _, content = content.removeprefix("<think>").partition("</think>")
            message["content"] = content.lstrip("\n")
            if thought.strip():
                message["reasoning_content"] = thought.strip("\n")
        return message

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def _encode(self, text: str) -> list[int]:
        if not self._spell:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        ids: list[int] = []
        for piece in _pieces(text):
            if piece not in self._spelled:
                self._spelled[piece] = list(self._tokenizer.encode(piece, add_special_tokens=False))
            ids.extend(self._spelled[piece])
        return ids


def _pieces(text: str) -> list[str]:
    """The characters of a text. The marks of thinking stay whole, because each of them is one token."""
    pieces: list[str] = []
    for number, part in enumerate(text.split("<think>")):
        if number:
            pieces.append("<think>")
        for place, rest in enumerate(part.split("</think>")):
            if place:
                pieces.append("</think>")
            pieces.extend(rest)
    return pieces
