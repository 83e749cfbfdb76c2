"""What a worker says: a head of JSON, and behind it the longer texts, raw. To parse JSON takes the host time in which it can do
nothing else, and many times its size of memory; texts cost neither. So heads are small, however much text there is."""

from __future__ import annotations

import struct

from .frames import ProtocolError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_TEXT = 32 << 20
"""Bytes of the texts of a message."""
MOST_HEAD = 4 << 20
"""Bytes of a head: of all that is no longer text."""
MOST_ITEMS = 500_000
"""Commas, lists and dicts of a head: what it takes to parse it."""
MOST_MESSAGE = MOST_TEXT + MOST_HEAD + 64
"""Bytes of the largest frame with a message in it."""

_SHORT = 64
"""Characters of a text that stays in the head. As many prompts as a call may have fit in one."""
_LITTLE, _PLAIN = 1 << 14, 1 << 18
"""Characters and items, and bytes of a head, up to which it is not worth while to look for longer texts."""
_MOST_LEVELS = 400
_SCALARS = frozenset((int, float, bool, type(None)))
_CONTAINERS = (list, tuple, dict)
_TOO_LONG = f"{MOST_TEXT >> 20} MB of text"
_TOO_MUCH = f"{MOST_HEAD >> 20} MB and {MOST_ITEMS:,} items besides longer texts"
_SIZE = struct.Struct(">I")


class TooLargeError(ValueError):
    """A message has more in it than it may have. Says how much of what it may."""


def dump(message: Any, size: int = 0) -> bytes:
    """
    Args:
        message: a list or dict of what JSON can hold.
        size: characters and items that are known to be in it, at least.

    Raises:
        TooLargeError: there is too much in it.
        TypeError: JSON cannot hold it; in the words of `json`.
        ValueError: it is nested too deep, or contains itself.
    """
    if size <= _LITTLE:
        head = encode([message, []])
        if len(head) <= _PLAIN:
            return _SIZE.pack(len(head)) + head
    texts = _Texts()
    rest = texts.lift(message)
    head = encode([rest, texts.places])
    if len(head) > MOST_HEAD or _items(head) > MOST_ITEMS:
        raise TooLargeError(_TOO_MUCH)
    return b"".join([_SIZE.pack(len(head)), head, *texts.found])


def load(payload: bytes, most: int = MOST_HEAD) -> Any:
    """The message of which `dump` made this. Texts may have got to places of a sender's choice, but nothing else comes of it.

    Args:
        most: bytes that its head may have.

    Raises:
        Exception: of any kind: it did not.
    """
    start = _SIZE.size + head_size(payload)
    head = payload[_SIZE.size : start]
    if start > len(payload) or len(head) > most or _items(head) > MOST_ITEMS:
        raise ProtocolError("no head of a message")
    message, found = decode(head)
    for way, places, sizes in found:
        holder = message
        for step in way:
            holder = holder[step]
        for place, size in zip(places, sizes, strict=True):
            end = start + size
            if not start <= end <= len(payload):
                raise ProtocolError("a text that is not there")
            holder[place] = payload[start:end].decode("utf-8", "surrogatepass")
            start = end
    if start != len(payload):
        raise ProtocolError("texts that are nowhere")
    return message


def head_size(payload: bytes) -> int:
    """Bytes of the head, as the message says it.

    Raises:
        struct.error: it says nothing.
    """
    size: int = _SIZE.unpack_from(payload)[0]
    return size


def _items(head: bytes) -> int:
    """How many there are; more, if short texts have commas and brackets in them."""
    if len(head) <= MOST_ITEMS:
        return 0
    return sum(map(head.count, (b",", b"[", b"{")))


class _Texts:
    """The longer texts of a message."""

    def __init__(self) -> None:
        self.found: list[bytes] = []
        self.places: list[Any] = []
        """Of each list or dict with such texts: the way to it, where they are in it, and the bytes of each."""
        self._way: list[Any] = []
        self._room = MOST_TEXT
        self._items = MOST_ITEMS

    def lift(self, value: Any) -> Any:
        """Takes them out of a list or a dict.

        Returns:
            A copy without them; itself if there are none.
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
        if named:  # JSON makes texts of keys that are none
            texts = [key for key in texts if type(key) is str]
            inner = [key for key in inner if type(key) is str]
        if len(self._way) >= _MOST_LEVELS:
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
            self.places.append([self._way[:], texts, sizes])
        for place in inner:
            self._way.append(place)
            item = self.lift(rest[place])
            self._way.pop()
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
