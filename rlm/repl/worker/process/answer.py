"""The `answer` variable, in every form that the code gives it."""

from __future__ import annotations

import types

from .descriptions import class_name, one_line_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MISSING = object()
_MOST_CHARACTERS = 4_000_000
"""Characters that the content may have. A message has room for as many characters of any kind, and for the output too."""


class Answer:
    """The answer of the code so far.

    `value` is the dict in the namespace. `report` holds three items: the content as text; whether it is ready; a note for the
    model if the code used `answer` in a way that cannot work, else None.
    """

    def __init__(self, content: str, ready: bool) -> None:
        self.value: dict[Any, Any] = {"content": content, "ready": ready}
        self.report: list[Any] = [content, ready, None]

    def read(self, names: dict[str, Any]) -> None:
        """Reads the answer from a namespace, after a cell. This may run code of the values in it."""
        note = self._take(names.get("answer", _MISSING))
        try:
            text, ready = self._text(), self._ready()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            text, ready = self.report[0], False
            note = f"`answer` could not be read: {one_line_error(error)}"
        if ready and not text:
            ready = False
            note = 'answer["ready"] is set, but answer["content"] is empty: set the content'
        if len(text) > _MOST_CHARACTERS:
            text, ready = text[:_MOST_CHARACTERS], False
            note = f'answer["content"] may have {_MOST_CHARACTERS:,} characters'
        self.report = [text, ready, note]

    def restore(self, names: dict[str, Any]) -> None:
        """Puts the answer back into a namespace, with both keys."""
        dict.setdefault(self.value, "content", "")
        dict.setdefault(self.value, "ready", False)
        names["answer"] = self.value

    def _take(self, value: Any) -> str | None:
        """Takes the value that `answer` is bound to as the answer. Returns a note for the model, or None."""
        if value is self.value:
            return None
        if issubclass(type(value), dict):
            self.value = value
            return None
        if value is _MISSING or value is None:
            return "`answer` was deleted or set to None; it is there again"
        if callable(value) or isinstance(value, types.ModuleType):
            return f"`answer` was rebound to a {class_name(value)}; it is the answer dict again, so use another name"
        self.value["content"], self.value["ready"] = value, False
        return (
            f'`answer` was rebound to a {class_name(value)}, which became answer["content"]; '
            'set answer["ready"] = True to finish'
        )

    def _text(self) -> str:
        content = dict.get(self.value, "content", "")
        if content is None:
            return ""
        return content if type(content) is str else str(content)

    def _ready(self) -> bool:
        ready = dict.get(self.value, "ready", False)
        if isinstance(ready, str):
            return ready.strip().lower() in ("true", "yes", "1")
        return bool(ready)
