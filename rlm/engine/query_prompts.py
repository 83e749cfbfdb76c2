"""Prompts of the code for sub-models: checked, and turned into chat messages."""

from __future__ import annotations

from typing import Any, cast, get_args

from rlm._wording import a
from rlm.errors import ContextError
from rlm.types import AudioPart, Content, ContentPart, ImagePart, ImageURL, Message, Role, TextPart

_ROLES = get_args(Role)
_DETAILS = ("auto", "low", "high")
_FORMS = (
    "a prompt is a str; or a list of parts: str, bytes of an image, {'type': 'text', 'text': ...}, {'type': 'image_url', "
    "'image_url': {'url': ...}}, {'type': 'input_audio', 'input_audio': {'data': ..., 'format': ...}}; or a list of "
    "messages: {'role': 'user', 'content': a str or a list of parts}"
)


def as_messages(prompt: Any) -> list[Message]:
    """Turns a prompt into chat messages.

    Args:
        prompt: a str; a list of parts, which become one user message; or a list of messages with "role" and "content", a str
            or a list of parts. A part is a str, or a dict of OpenAI's chat API of the "type" "text", "image_url" or
            "input_audio". (The worker has turned bytes of images into parts.) The code can pass any other value too.

    Returns:
        New messages with the fields of these forms alone. Content without images and sounds is a str.

    Raises:
        ContextError: the prompt has another form. The message says where, and what is allowed.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list):
        raise _error(f"this one is {a(prompt)}")
    if not prompt:
        raise _error("this one is an empty list")
    if any(isinstance(item, dict) and "role" in item for item in prompt):
        return [_message(item, f"its item {place}") for place, item in enumerate(prompt)]
    return [{"role": "user", "content": _parts(prompt, "its item")}]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or "role" not in message:
        raise _error(f"{where} is {a(message)} without a role, among messages")
    role, content = message["role"], message.get("content")
    if role not in _ROLES:
        raise _error(f"{where} has the role {_short(role)}, and there are {', '.join(_ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": content}
    if not isinstance(content, list) or not content:
        what = "an empty list" if content == [] else a(content)
        raise _error(f"the content of {where} is {what}")
    return {"role": role, "content": _parts(content, f"the content of {where}, its part")}


def _parts(items: list[Any], where: str) -> Content:
    parts = [_part(item, f"{where} {place}") for place, item in enumerate(items)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(cast(TextPart, part)["text"] for part in parts)
    return parts


def _part(part: Any, where: str) -> ContentPart:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise _error(f"{where} is {a(part)}")
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": _text(part, "text", where)}
    if kind == "image_url":
        return _image(part.get("image_url"), where)
    if kind == "input_audio":
        return _audio(part.get("input_audio"), where)
    raise _error(f"{where} has the type {_short(kind)}")


def _image(image: Any, where: str) -> ImagePart:
    if not isinstance(image, dict):
        raise _error(f"the 'image_url' of {where} is {a(image)} and not a dict with 'url'")
    url = _text(image, "url", where)
    if not url.startswith(("https://", "http://", "data:image/")):
        raise _error(
            f"the image of {where} is at {_short(url)}, which is neither an http(s) URL nor data:image/..."
        )
    checked: ImageURL = {"url": url}
    detail = image.get("detail")
    if detail is not None:
        if detail not in _DETAILS:
            raise _error(f"the detail of {where} is {_short(detail)}, and there are {', '.join(_DETAILS)}")
        checked["detail"] = detail
    return {"type": "image_url", "image_url": checked}


def _audio(audio: Any, where: str) -> AudioPart:
    if not isinstance(audio, dict):
        raise _error(f"the 'input_audio' of {where} is {a(audio)} and not a dict with 'data' and 'format'")
    checked = {"data": _text(audio, "data", where), "format": _text(audio, "format", where)}
    return cast(AudioPart, {"type": "input_audio", "input_audio": checked})


def _text(part: dict[str, Any], key: str, where: str) -> str:
    value = part.get(key)
    if not isinstance(value, str):
        raise _error(f"the {key!r} of {where} is {a(value)} and not a str")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _error(problem: str) -> ContextError:
    return ContextError(f"{problem}; {_FORMS}")
