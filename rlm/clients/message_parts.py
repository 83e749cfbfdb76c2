"""The parts of an outgoing message's content, checked, and texts that UTF-8 can hold."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlm.errors import ConfigError
from rlm.types import Content, Message

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaPart:
    """An image or a sound whose bytes are in the message."""

    media_type: str
    """The MIME type, such as image/png."""
    data: str
    """The bytes, in Base64."""


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image that the provider loads itself."""

    url: str


def parts_of(content: Content) -> list[PlainText | MediaPart | RemoteImage]:
    """The parts of a message's content. An empty text has no part.

    Raises:
        ConfigError: a part has an unknown form, or its data are not of its type.
    """
    if isinstance(content, str):
        return [PlainText(sendable(content))] if content else []
    if not isinstance(content, list):
        raise ConfigError(
            f"a message's content must be a str or a list of parts, not {type(content).__name__}"
        )
    return [_part(part) for part in content]


def check_parts(messages: Sequence[Message]) -> None:
    """Checks the content of all messages.

    Raises:
        ConfigError: a part has a form that no server can read.
    """
    for message in messages:
        if type(message.get("content")) is not str:
            parts_of(message.get("content"))


def sendable(text: str) -> str:
    """The text in a form that UTF-8 can hold. A lone surrogate becomes U+FFFD: UTF-8 cannot hold it, and servers refuse its
    JSON escape. The two halves of a surrogate pair become their character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _part(part: Any) -> PlainText | MediaPart | RemoteImage:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return PlainText(sendable(part["text"]))
    if kind == "image_url" and isinstance(part.get("image_url"), Mapping):
        return _image(part["image_url"].get("url"))
    if kind == "input_audio" and isinstance(part.get("input_audio"), Mapping):
        audio = part["input_audio"]
        data, form = audio.get("data"), audio.get("format")
        if isinstance(data, str) and isinstance(form, str):
            return MediaPart(f"audio/{form}", _checked(data, "an input_audio part"))
    raise ConfigError(
        "a part of a message must be {'type': 'text', 'text': ...}, {'type': 'image_url', 'image_url': {'url': ...}} or "
        f"{{'type': 'input_audio', 'input_audio': {{'data': ..., 'format': ...}}}}; this one is {_shown(part)}"
    )


def _image(url: Any) -> MediaPart | RemoteImage:
    if isinstance(url, str):
        if url.startswith(("https://", "http://")):
            return RemoteImage(url)
        found = _DATA_URL.match(url)
        if found:
            media_type = found["type"].lower()
            if not media_type.startswith("image/"):
                raise ConfigError(f"an image_url part holds {media_type}, which is not an image")
            return MediaPart(media_type, _checked(url[found.end() :], "an image_url part"))
    raise ConfigError(
        "the url of an image_url part must be https://..., or data:image/<kind>;base64,<data>; "
        f"this one begins with {_shown(url)}"
    )


def _checked(data: str, where: str) -> str:
    try:
        if not base64.b64decode(data, validate=True):
            raise ConfigError(f"{where} holds no data")
    except (binascii.Error, ValueError) as exc:
        raise ConfigError(f"{where} holds data that is not base64: {exc}") from None
    return data


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
