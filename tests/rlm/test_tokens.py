"""How long a prompt is for a model."""

from __future__ import annotations

import pytest

from rlm.errors import ContextLengthError
from rlm.testing import ScriptedClient
from rlm.tokens import Counted, Window, estimate_tokens
from rlm.types import Message

_PROSE = "The input is a variable in a Python REPL, and the model writes code to look at it.\n" * 40


def _chat(*texts: str) -> list[Message]:
    return [
        {"role": "user", "content": text} if number % 2 == 0 else {"role": "assistant", "content": text}
        for number, text in enumerate(texts)
    ]


def _window(tokens: int | None) -> Window:
    return Window(ScriptedClient(lambda request: "ok", max_model_len=tokens))


def test_a_text_over_the_sample_size_is_estimated_like_its_parts() -> None:
    long, short = estimate_tokens(_chat(_PROSE * 100)), estimate_tokens(_chat(_PROSE))
    assert long == pytest.approx(100 * short, rel=0.1)


def test_what_a_server_counted_is_not_guessed_again() -> None:
    window = _window(None)
    messages = _chat(_PROSE, "yes", _PROSE)
    assert window.guess(messages, Counted(2, 7)) == 7 + estimate_tokens(messages[2:])
    assert window.guess(messages) == estimate_tokens(messages)


def test_a_guess_learns_from_counts_within_reason() -> None:
    window, messages = _window(None), _chat(_PROSE)
    plain = estimate_tokens(messages)
    window.observe(messages, round(plain * 0.8))
    assert window.guess(messages) == pytest.approx(plain * 0.8, abs=1)
    assert window.bound(messages) == plain
    other = _window(None)
    other.observe(messages, plain * 10)
    assert other.guess(messages) == pytest.approx(plain * 1.2, abs=1)


async def test_a_prompt_that_a_server_counted_is_refused_by_its_count() -> None:
    window = _window(1000)
    messages = _chat("x", "y", _PROSE)
    rest = estimate_tokens(messages[2:])
    assert rest < 1000
    await window.check(messages)
    await window.check(messages, Counted(2, 1000 - rest))
    with pytest.raises(ContextLengthError, match=r"window of scripted is 1,000 tokens"):
        await window.check(messages, Counted(2, 1001 - rest))


async def test_a_text_of_ascii_that_fits_byte_for_byte_is_never_refused() -> None:
    # Worse for a tokenizer than any prose, and still at most a token each.
    messages = _chat("~" * 990)
    window = _window(1000)
    window.observe(_chat("~" * 10), 500)
    await window.check(messages)
    with pytest.raises(ContextLengthError):
        await window.check(_chat("~" * 1001))
