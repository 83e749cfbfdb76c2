"""Captured output: its head and its tail, in constant memory."""

from __future__ import annotations

import codecs

_MOST_RAW = 1 << 20
"""Bytes that are collected before they are decoded."""
_CONTINUATION = bytes(range(0x80, 0xC0))


class Output:
    """The output of one stream since the last `take`: its head and its tail, in constant memory.

    The bytes between head and tail are not decoded. This is fast: one supervisor collects the output of all REPLs.

    Args:
        limit: characters that are kept, half of them at each end.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head_limit = limit // 2
        self._tail_limit = limit - limit // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._raw = bytearray()
        """Bytes that have not been decoded."""
        self._reset()

    def _reset(self) -> None:
        self._head: list[str] = []
        self._head_size = 0
        self._tail: list[str] = []
        self._tail_size = 0
        self._total = 0
        self._last = "\n"
        self._fed = False

    def feed(self, data: bytes) -> None:
        self._fed = True
        self._raw += data
        if len(self._raw) > max(_MOST_RAW, 8 * self._limit):
            self._decode()

    def _decode(self, final: bool = False) -> None:
        """Decodes the head and the tail of the raw bytes. A character has at most four bytes."""
        data = bytes(self._raw)
        self._raw.clear()
        begin = _boundary(data, 4 * (self._head_limit - self._head_size))
        end = _boundary(data, len(data) - 4 * self._tail_limit)
        if begin < end:
            self._add(self._decoder.decode(data[:begin]))
            self._total += len(data[begin:end].translate(None, _CONTINUATION))
            self._tail, self._tail_size = [], 0
            begin = end
        else:
            begin = 0
        self._add(self._decoder.decode(data[begin:], final))

    def add(self, text: str) -> None:
        """Adds text after the bytes that were fed."""
        if text:
            self._decode()
            self._add(text)

    def _add(self, text: str) -> None:
        if not text:
            return
        self._fed = True
        self._total += len(text)
        self._last = text[-1]
        if self._head_size < self._head_limit:
            part = text[: self._head_limit - self._head_size]
            self._head.append(part)
            self._head_size += len(part)
            text = text[len(part) :]
        if len(text) > self._tail_limit:
            text = text[-self._tail_limit :]
        self._tail.append(text)
        self._tail_size += len(text)
        if self._tail_size > 2 * self._tail_limit:
            self._cut()

    def _cut(self) -> None:
        text = "".join(self._tail)[-self._tail_limit :] if self._tail_limit else ""
        self._tail, self._tail_size = [text], len(text)

    def add_line(self, text: str) -> None:
        """Adds text that begins on a new line."""
        if text:
            self._decode()
            self._add(text if self._last == "\n" else "\n" + text)

    def take(self) -> str:
        """Returns the output and clears it. A line in the middle says how many characters were left out."""
        if not self._fed:
            return ""
        self._decode(final=True)
        self._cut()
        left_out = self._total - self._head_size - self._tail_size
        middle = f"\n... [{left_out:,} characters left out] ...\n" if left_out else ""
        text = "".join(self._head) + middle + "".join(self._tail)
        self._reset()
        return text


def _boundary(data: bytes, place: int) -> int:
    """The first place at or after `place` where a character of UTF-8 can begin."""
    place = min(max(0, place), len(data))
    rest = data[place : place + 3]
    return place + len(rest) - len(rest.lstrip(_CONTINUATION))


def joined(limit: int, text: str, line: str) -> str:
    """`text`, and `line` on a new line after it: head and tail, of about `limit` characters at most."""
    if len(text) + len(line) < limit:
        return text + line if not line or not text or text[-1] == "\n" else f"{text}\n{line}"
    output = Output(limit)
    output.add(text)
    output.add_line(line)
    return output.take()
