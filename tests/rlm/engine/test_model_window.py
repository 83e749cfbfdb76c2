"""Estimates of a prompt's tokens, and the refusal of prompts that do not fit."""

from __future__ import annotations

from typing import Any

import pytest

from rlm import RLM, RLMLogger
from rlm.engine.model_window import Counted, ModelWindow, estimate_tokens
from rlm.errors import ContextLengthError
from rlm.testing import ChatRequest, Reply, ScriptedClient, finish, repl_block
from rlm.types import Message, Usage

_PROSE = "The input is a variable in a Python REPL, and the model writes code to look at it.\n" * 40


def _chat(*texts: str) -> list[Message]:
    return [
        {"role": "user", "content": text} if number % 2 == 0 else {"role": "assistant", "content": text}
        for number, text in enumerate(texts)
    ]


def _window(tokens: int | None) -> ModelWindow:
    return ModelWindow(ScriptedClient(lambda request: "ok", max_model_len=tokens))


def test_a_text_over_the_sample_size_is_estimated_like_its_parts() -> None:
    long, short = estimate_tokens(_chat(_PROSE * 100)), estimate_tokens(_chat(_PROSE))
    assert long == pytest.approx(100 * short, rel=0.1)


def test_messages_that_a_server_counted_are_not_estimated() -> None:
    window = _window(None)
    messages = _chat(_PROSE, "yes", _PROSE)
    assert window.guess(messages, Counted(2, 7)) == 7 + estimate_tokens(messages[2:])
    assert window.guess(messages) == estimate_tokens(messages)


def test_an_estimate_is_corrected_by_counts_within_bounds() -> None:
    window, messages = _window(None), _chat(_PROSE)
    plain = estimate_tokens(messages)
    window.observe(messages, round(plain * 0.8))
    assert window.guess(messages) == pytest.approx(plain * 0.8, abs=1)
    assert window.bound(messages) == plain
    other = _window(None)
    other.observe(messages, plain * 100)
    assert other.guess(messages) == pytest.approx(plain * 4, abs=1)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (_PROSE, len(_PROSE) / 5, len(_PROSE) / 3),
        ("\u6211\u4eec\u5728\u8fd9\u91cc\u8bfb\u4e00\u672c\u4e66\u3002" * 40, 240, 440),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35" * 40, 120, 280),
        (
            "\u042d\u0442\u043e \u0441\u0442\u0440\u043e\u043a\u0430 \u0442\u0435\u043a\u0441\u0442\u0430. "
            * 40,
            240,
            440,
        ),
        ("aGVsbG8gd29ybGQgZnJvbSBiYXNlNjQ" * 40, 600, 1000),
        ("9f86d081884c7d659a2feaa0c55ad015" * 40, 640, 1280),
    ],
    ids=["English", "Chinese", "Thai", "Russian", "base64", "hexadecimal"],
)
def test_estimates_lie_near_the_counts_of_tokenizers(text: str, least: float, most: float) -> None:
    """The least is about the count of current tokenizers; more than the most would refuse prompts that fit."""
    assert least <= estimate_tokens(_chat(text)) - estimate_tokens(_chat("")) <= most


def test_estimates_are_corrected_by_sub_calls_too() -> None:
    served: list[int] = []
    code = "r = llm_query('x' * 3000); s = llm_query('x' * 12_000); answer.update(content=[r, s], ready=True)"

    def policy(request: ChatRequest) -> Reply | str:
        if not request.is_subcall:
            return repl_block(code)
        served.append(len(str(request.messages[-1]["content"])))
        return Reply("read", usage=Usage(served[-1], 1))

    sub = ScriptedClient(policy, max_model_len=6000)
    with RLM(client=ScriptedClient(policy), other_clients={"sub": sub}) as rlm:
        response = rlm.completion("text", "What?").response
    # The server counts each letter as a token, so it would refuse the second prompt.
    assert served == [3000]
    assert "12,000 characters" in response


async def test_a_prompt_that_a_server_counted_is_refused_by_its_count() -> None:
    window = _window(1000)
    messages = _chat("x", "y", _PROSE)
    rest = estimate_tokens(messages[2:])
    assert rest < 1000
    await window.check(messages)
    await window.check(messages, Counted(2, 1000 - rest))
    with pytest.raises(ContextLengthError, match=r"window of scripted is 1,000 tokens"):
        await window.check(messages, Counted(2, 1001 - rest))


@pytest.mark.parametrize("options", [{}, {"logger": RLMLogger()}, {"compaction": True}])
async def test_a_client_whose_window_is_unknown_can_be_used(options: dict[str, Any]) -> None:
    class Client(ScriptedClient):
        async def context_length(self, model: str | None = None) -> int | None:
            raise OSError("no route")

    client = Client(lambda request: finish("'ok'"))
    async with RLM(client=client, **options) as rlm:
        assert (await rlm.acompletion("text", "What?")).response == "ok"


async def test_ascii_text_with_no_more_bytes_than_the_window_has_tokens_is_never_refused() -> None:
    # Each character is a token here, which is the most that is possible.
    messages = _chat("~" * 990)
    window = _window(1000)
    window.observe(_chat("~" * 10), 500)
    await window.check(messages)
    with pytest.raises(ContextLengthError):
        await window.check(_chat("~" * 1001))
