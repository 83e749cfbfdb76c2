"""Messages of a worker to the host: a head of JSON, and after it the longer texts as raw UTF-8.

While the host parses JSON it does nothing else, and the result takes many times the memory of the JSON. Raw texts cost neither
time nor memory. So the head is kept small, however much text a message has.
"""

from __future__ import annotations

import struct

from .frames import ProtocolError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_TEXT = 32 << 20
"""Bytes that the raw texts of a message may have together."""
MOST_HEAD = 4 << 20
"""Bytes that a head may have."""
MOST_ITEMS = 500_000
"""Commas, lists and dicts that a head may have. These take the time and memory of parsing."""
MOST_MESSAGE = MOST_TEXT + MOST_HEAD + 64
"""Bytes of the largest payload of a frame with a message."""

_SHORT = 64
"""Characters of the longest text that stays in the head. A head has room for all prompts of a call that are as short."""
_SMALL_MESSAGE, _SMALL_HEAD = 1 << 14, 1 << 18
"""Two bounds of a message that is not searched for longer texts: its characters and items, and the bytes of its head."""
_MOST_LEVELS = 400
_SCALARS = frozenset((int, float, bool, type(None)))
_CONTAINERS = (list, tuple, dict)
_TOO_LONG = f"{MOST_TEXT >> 20} MB of text"
_TOO_MUCH = f"{MOST_HEAD >> 20} MB and {MOST_ITEMS:,} items besides longer texts"
_SIZE = struct.Struct(">I")


class TooLargeError(ValueError):
    """A message is too large. The error's text says what the limit is, as in "32 MB of text"."""


def dump(message: Any, size: int = 0) -> bytes:
    """Encodes a message.

    Args:
        message: a list or dict of what JSON can hold.
        size: a lower bound of its characters and items. A small message is encoded faster.

    Raises:
        TooLargeError: the message is too large.
        TypeError: the message holds something that JSON cannot hold. The text is that of `json`.
        ValueError: the message is nested too deep, or contains itself.
    """
    if size <= _SMALL_MESSAGE:
        head = encode([message, []])
        if len(head) <= _SMALL_HEAD:
            return _SIZE.pack(len(head)) + head
    texts = _Texts()
    rest = texts.lift(message)
    head = encode([rest, texts.places])
    if len(head) > MOST_HEAD or _items(head) > MOST_ITEMS:
        raise TooLargeError(_TOO_MUCH)
    return b"".join([_SIZE.pack(len(head)), head, *texts.found])


def load(payload: bytes, most: int = MOST_HEAD) -> Any:
    """Decodes what `dump` encoded. A malicious payload can do no more than put texts in odd places of the message.

    Args:
        most: bytes that the head may have.

    Raises:
        Exception: `payload` is no message. The exception can be of any kind.
    """
    start = _SIZE.size + head_size(payload)
    head = payload[_SIZE.size : start]
    if start > len(payload) or len(head) > most or _items(head) > MOST_ITEMS:
        raise ProtocolError("the head of a message is missing or too large")
    message, found = decode(head)
    for path, places, sizes in found:
        holder = message
        for step in path:
            holder = holder[step]
        for place, size in zip(places, sizes, strict=True):
            end = start + size
            if not start <= end <= len(payload):
                raise ProtocolError("a message announces a text that it does not have")
            holder[place] = payload[start:end].decode("utf-8", "surrogatepass")
            start = end
    if start != len(payload):
        raise ProtocolError("a message has a text that it does not announce")
    return message


def head_size(payload: bytes) -> int:
    """Bytes of the head, as the payload claims.

    Raises:
        struct.error: the payload is too short to say.
    """
    size: int = _SIZE.unpack_from(payload)[0]
    return size


def _items(head: bytes) -> int:
    """An upper bound of the items of a head: commas and brackets within short texts count too."""
    if len(head) <= MOST_ITEMS:
        return 0
    return sum(map(head.count, (b",", b"[", b"{")))


class _Texts:
    """Takes the longer texts out of a message."""

    def __init__(self) -> None:
        self.found: list[bytes] = []
        """The texts, encoded."""
        self.places: list[Any] = []
        """For each list or dict with longer texts: the keys that lead to it, the keys of the texts in it, their bytes."""
        self._path: list[Any] = []
        self._room = MOST_TEXT
        self._items = MOST_ITEMS

    def lift(self, value: Any) -> Any:
        """Takes the longer texts out of a list or a dict.

        Returns:
            A copy without them; `value` itself if it has none.
        """
        self._items -= len(value)
        if self._items < 0:
            raise TooLargeError(_TOO_MUCH)
        named: bool = isinstance(value, dict)
        texts: list[Any] = []
        inner: list[Any] = []
        for place, item in value.items() if named else enumerate(value):
            kind = type(item)
            if kind is str:
                if len(item) > _SHORT:
                    texts.append(place)
            elif kind not in _SCALARS:
                if isinstance(item, _CONTAINERS):
                    inner.append(place)
                elif isinstance(item, str):
                    texts.append(place)
        if not texts and not inner:
            return value
        if named:  # a key that is no str becomes one in JSON, so the host would not find it
            texts = [key for key in texts if type(key) is str]
            inner = [key for key in inner if type(key) is str]
        if len(self._path) >= _MOST_LEVELS:
            raise ValueError(f"it is nested too deep (more than {_MOST_LEVELS} levels), or contains itself")
        rest = value
        if texts:
            rest = dict(value.items()) if named else list(value)
            sizes = []
            for place in texts:
                data = self._encode(rest[place])
                rest[place] = None
                sizes.append(len(data))
                self.found.append(data)
            self.places.append([self._path[:], texts, sizes])
        for place in inner:
            self._path.append(place)
            item = self.lift(rest[place])
            self._path.pop()
            if item is not rest[place]:
                if rest is value:
                    rest = dict(value.items()) if named else list(value)
                rest[place] = item
        return rest

    def _encode(self, text: str) -> bytes:
        if len(text) <= self._room:
            data = str.encode(text, "utf-8", "surrogatepass")
            self._room -= len(data)
            if self._room >= 0:
                return data
        raise TooLargeError(_TOO_LONG)
