"""Frames: one byte for the kind (`kinds`), four bytes for the length of the payload, big-endian, and the payload."""

from __future__ import annotations

import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_FRAME = 256 << 20
"""Bytes of the largest payload. A worker's is smaller: see `messages.MOST_MESSAGE`."""

_HEADER = struct.Struct(">cI")
NUMBER = struct.Struct(">Q")
"""The number of a call. It comes before the payload in a frame that asks, and in the frame that answers."""


class ProtocolError(Exception):
    """The other side sent something that the protocol does not allow."""


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode


def encode(message: Any) -> bytes:
    """JSON in UTF-8, in which lone surrogates are kept."""
    return _to_json(message).encode("utf-8", "surrogatepass")


def decode(payload: bytes) -> Any:
    return _from_json(payload.decode("utf-8", "surrogatepass"))


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, len(payload)) + payload


class Frames:
    """Cuts a byte stream into frames.

    Args:
        most: bytes that a payload may have.
    """

    def __init__(self, most: int = MAX_FRAME) -> None:
        self._most = most
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> tuple[bytes, bytes] | None:
        """Kind and payload of the next frame; None if it has not arrived in full.

        Raises:
            ProtocolError: the payload is longer than allowed.
        """
        buffer = self._buffer
        if len(buffer) < _HEADER.size:
            return None
        kind, size = _HEADER.unpack_from(buffer)
        if size > self._most:
            raise ProtocolError(f"a frame of {size} bytes is longer than the {self._most} that are allowed")
        end = _HEADER.size + size
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[_HEADER.size : end])
        del buffer[:end]
        return kind, payload


def write_all(fd: int, data: bytes) -> None:
    """Writes all of `data` to a blocking descriptor."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
