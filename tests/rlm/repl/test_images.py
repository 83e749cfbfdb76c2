"""Images in the prompts of the code."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rlm.engine.query_prompts import as_messages
from rlm.environments import REPL, Query, QueryReply

OpenREPL = Callable[..., Awaitable[REPL]]

IMAGES = {
    "png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "gif": b"GIF89a" + bytes(20),
    "webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
}


def part(kind: str) -> dict[str, Any]:
    data = base64.b64encode(IMAGES[kind]).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


class Asked:
    """Answers queries, and keeps their prompts."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    async def answer(self, query: Query) -> list[QueryReply]:
        self.prompts += query.prompts
        return [QueryReply("seen") for _ in query.prompts]


@pytest.mark.parametrize("kind", IMAGES)
async def test_bytes_of_an_image_become_a_data_url(open_repl: OpenREPL, kind: str) -> None:
    asked = Asked()
    repl = await open_repl({"image": IMAGES[kind]}, on_query=asked.answer)
    result = await repl.execute("llm_query(['what is it?', context['image']])")
    assert result.stdout == "'seen'\n"
    assert asked.prompts == [["what is it?", part(kind)]]
    assert as_messages(asked.prompts[0])[0]["content"] == [
        {"type": "text", "text": "what is it?"},
        part(kind),
    ]


async def test_images_work_in_every_function_and_form(open_repl: OpenREPL) -> None:
    asked = Asked()
    repl = await open_repl(IMAGES["png"], on_query=asked.answer)
    ready = {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}
    result = await repl.execute(
        "message = {'role': 'user', 'content': ('see', context)}\n"
        "print(llm_query([message]), message['content'][1] == context)\n"
        "llm_query_batched(['text', (context,)])\n"
        "rlm_query([bytearray(context)])\n"
        f"rlm_query_batched([[{ready!r}, context] for _ in range(2)])"
    )
    assert result.stdout == "seen True\n['seen', 'seen']\n"
    assert asked.prompts == [
        [{"role": "user", "content": ["see", part("png")]}],
        "text",
        [part("png")],
        [part("png")],
        [ready, part("png")],
        [ready, part("png")],
    ]


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("['see', b'some text']", "TypeError: 9 bytes in a prompt are no PNG, JPEG, GIF or WebP image"),
        ("[b'']", "TypeError: 0 bytes in a prompt are no PNG"),
        ("context", "TypeError: a prompt cannot hold bytes"),
        ("{1, 2}", "TypeError: a prompt cannot hold set"),
        ("[{'type': 'image_url', 'image_url': {'url': context}}]", "TypeError: a prompt cannot hold bytes"),
        ("[{1: object()}]", "TypeError: a prompt cannot hold object"),
        ("[{(1, 2): 3}]", "TypeError: a prompt "),
    ],
)
async def test_a_prompt_that_cannot_be_sent_raises_a_clear_error(
    open_repl: OpenREPL, prompt: str, error: str
) -> None:
    repl = await open_repl(IMAGES["png"])
    for function in ("llm_query(", "rlm_query_batched(['text', "):
        result = await repl.execute(f"{function}{prompt}{')' if function == 'llm_query(' else '])'}")
        assert str(result.error).startswith(error)
    assert (await repl.execute("llm_query('x')")).stdout == "'llm:x'\n"


async def test_a_large_image_arrives_whole(open_repl: OpenREPL) -> None:
    asked = Asked()
    repl = await open_repl(IMAGES["jpeg"] + bytes(20_000_000), on_query=asked.answer)
    assert (await repl.execute("llm_query(['what?', context])")).stdout == "'seen'\n"
    assert len(asked.prompts[0][1]["image_url"]["url"]) > 26_000_000
