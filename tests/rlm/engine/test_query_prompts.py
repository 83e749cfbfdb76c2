"""Prompts of the code become chat messages, or errors that list the allowed forms."""

from __future__ import annotations

from typing import Any

import pytest

from rlm.engine.query_prompts import as_messages
from rlm.errors import ContextError

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("text", [{"role": "user", "content": "text"}]),
        ("", [{"role": "user", "content": ""}]),
        (["one", "two"], [{"role": "user", "content": "one\ntwo"}]),
        ([{"type": "text", "text": "one"}], [{"role": "user", "content": "one"}]),
        (["what?", IMAGE], [{"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE]}]),
        ([SOUND], [{"role": "user", "content": [SOUND]}]),
        (
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": ["see", IMAGE]}],
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]},
            ],
        ),
        (
            [
                {"role": "user", "content": "a", "name": "x", "native": {}},
                {"role": "assistant", "content": "b"},
            ],
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
        (
            [{"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low", "z": 1}, "z": 1}],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
                    ],
                }
            ],
        ),
    ],
)
def test_every_form_of_a_prompt_becomes_messages(prompt: Any, messages: list[Any]) -> None:
    assert as_messages(prompt) == messages


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (None, "this one is None"),
        (5, "this one is an int"),
        ({"role": "user", "content": "x"}, "this one is a dict"),
        ([], "this one is an empty list"),
        ([5], "its item 0 is an int"),
        (["a", ["b"]], "its item 1 is a list"),
        ([{"text": "x"}], "its item 0 has the type None"),
        ([{"type": "file", "file": {}}], "its item 0 has the type 'file'"),
        ([{"type": "text", "text": 5}], "the 'text' of its item 0 is an int and not a str"),
        (
            [{"type": "image_url", "image_url": "https://x"}],
            "the 'image_url' of its item 0 is a str and not a dict",
        ),
        ([{"type": "image_url", "image_url": {}}], "the 'url' of its item 0 is None"),
        (
            [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
            "neither an http(s) URL nor data:image",
        ),
        (
            [{"type": "image_url", "image_url": {"url": "https://x", "detail": "max"}}],
            "the detail of its item 0",
        ),
        ([{"type": "input_audio", "input_audio": []}], "the 'input_audio' of its item 0 is a list"),
        ([{"type": "input_audio", "input_audio": {"data": "x"}}], "the 'format' of its item 0 is None"),
        ([{"role": "tool", "content": "x"}], "its item 0 has the role 'tool'"),
        ([{"role": ["user"], "content": "x"}], "its item 0 has the role ['user']"),
        ([{"role": "user"}], "the content of its item 0 is None"),
        ([{"role": "user", "content": []}], "the content of its item 0 is an empty list"),
        ([{"role": "user", "content": [5]}], "the content of its item 0, its part 0 is an int"),
        ([{"role": "user", "content": "x"}, "y"], "its item 1 is a str without a role, among messages"),
    ],
)
def test_an_invalid_prompt_is_refused_with_the_place_of_the_error(prompt: Any, problem: str) -> None:
    with pytest.raises(ContextError) as error:
        as_messages(prompt)
    assert problem in str(error.value)
    assert "a prompt is a str; or a list of parts" in str(error.value)
