"""The functions and classes in the namespace of the code."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


MOST_PROMPTS = 10_000
"""Prompts that one call may have."""
MOST_MODEL_NAME = 200
"""Characters that the name of a model may have: the reply to each prompt repeats it if there is no such model."""


class SubcallError(str):
    """The reply to a sub-call that failed: a str that starts with "Error: "."""

    __slots__ = ()
    __module__ = "__main__"


class Shown(str):
    """A text whose `repr` is the text itself. It looks the same whether a cell prints it or ends with it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def make_functions(
    ask: Callable[[dict[str, Any]], list[Any]], describe_names: Callable[[], dict[str, str]]
) -> dict[str, Any]:
    """The functions of the namespace, by name.

    Args:
        ask: sends a query and returns its replies, each [text, failed].
        describe_names: returns the names that the code has defined, with a description of each value.
    """

    def query(kind: str, prompts: list[Any], model: str | None, batched: bool) -> list[str]:
        if model is not None and not isinstance(model, str):
            raise TypeError(f"model must be a str or None, not {type(model).__name__}")
        if model is not None and len(model) > MOST_MODEL_NAME:
            raise ValueError(f"no model has a name of {len(model):,} characters")
        if not prompts:
            return []
        if len(prompts) > MOST_PROMPTS:
            raise ValueError(
                f"one call may have {MOST_PROMPTS:,} prompts, and these are {len(prompts):,}: send fewer at a time"
            )
        replies = ask({"kind": kind, "prompts": prompts, "model": model, "batched": batched})
        return [_reply(text, failed) for text, failed in replies]

    def llm_query(prompt: Any, model: str | None = None) -> str:
        """Asks a sub-model and returns its reply. A failed call returns a SubcallError (a str, "Error: ...").

        prompt: text; or a list of texts, images (bytes of a PNG, JPEG, GIF or WebP) and parts as OpenAI's chat API has
        them; or a list of messages with such content. model: its name; the default sub-model if None.
        """
        return query("llm", [_as_prompt(prompt)], model, False)[0]

    def llm_query_batched(prompts: Iterable[Any], model: str | None = None) -> list[str]:
        """Asks a sub-model many prompts at once; returns the replies in their order. Failed ones are SubcallErrors."""
        return query("llm", _as_list(prompts), model, True)

    def rlm_query(prompt: Any, model: str | None = None) -> str:
        """Like llm_query, but the prompt becomes the context of a child run that has a REPL of its own."""
        return query("rlm", [_as_prompt(prompt)], model, False)[0]

    def rlm_query_batched(prompts: Iterable[Any], model: str | None = None) -> list[str]:
        """Like llm_query_batched, with one child run for each prompt."""
        return query("rlm", _as_list(prompts), model, True)

    def SHOW_VARS() -> str:  # noqa: N802
        """Lists the names that the code has defined and what they are."""
        names = describe_names()
        if not names:
            return Shown("No names have been defined yet.")
        return Shown("\n".join(f"{name}: {description}" for name, description in names.items()))

    functions: list[Any] = [llm_query, llm_query_batched, rlm_query, rlm_query_batched, SHOW_VARS]
    for function in functions:
        function.__qualname__ = function.__name__
        function.__module__ = "__main__"
    return {**{function.__name__: function for function in functions}, "SubcallError": SubcallError}


def _reply(text: str, failed: bool) -> str:
    if not failed:
        return text
    return SubcallError(text if text.startswith("Error: ") else "Error: " + text)


def _as_list(prompts: Iterable[Any]) -> list[Any]:
    if isinstance(prompts, (str, bytes, dict)):
        raise TypeError(f"prompts must be a list of prompts, not a {type(prompts).__name__}")
    return [_as_prompt(prompt) for prompt in prompts]


def _as_prompt(prompt: Any) -> Any:
    """A prompt whose images are data URLs. The host checks the rest."""
    if type(prompt) is str or not isinstance(prompt, (list, tuple)):
        return prompt
    return [_as_part(part) for part in prompt]


def _as_part(part: Any) -> Any:
    if isinstance(part, (bytes, bytearray)):
        import binascii

        kind = _image_kind(part)
        url = f"data:image/{kind};base64,{binascii.b2a_base64(part, newline=False).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}
    if isinstance(part, dict) and isinstance(part.get("content"), (list, tuple)):
        return {**part, "content": [_as_part(inner) for inner in part["content"]]}
    return part


def _image_kind(data: bytes | bytearray) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    raise TypeError(
        f"{len(data):,} bytes in a prompt are no PNG, JPEG, GIF or WebP image: decode them if they are text"
    )
