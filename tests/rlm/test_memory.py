"""A run that has ended keeps neither its input in memory nor descriptors open."""

from __future__ import annotations

import contextlib
import gc
import pickle
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rlm import RLM
from rlm.aio.background import background
from rlm.context import Context
from rlm.errors import ContextError, RLMError
from rlm.logger import RLMLogger
from rlm.testing import FINISH, ChatRequest, Fault, Reply, ScriptedClient, finish, repl_block
from rlm.types import MapInput, RLMChatCompletion


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """No garbage collection during a test: objects must be freed by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def open_contexts() -> int:
    """The number of open descriptors of contexts in this process."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        try:
            count += "rlm-context" in str(fd.readlink())
        except OSError:
            continue  # the descriptor of the listing itself
    return count


async def failure(rlm: RLM, context: Any) -> str:
    try:
        completion = await rlm.acompletion(context, "What?")
    except RLMError as error:
        return type(error).__name__
    return completion.response


def children(request: ChatRequest) -> str:
    if "Question:" not in str(request.messages[1]["content"]):
        return FINISH
    return FINISH if request.turn else repl_block("rlm_query_batched(['x' * 100] * 3)")


class _Text(str):
    """A str that allows weak references."""


async def _nothing() -> None:
    pass


ENDINGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "answer": (FINISH, {}, "done"),
    "logged": (FINISH, {"logger": RLMLogger()}, "done"),
    "sub-calls": (
        finish("'x'", "llm_query_batched(['a'] * 3)"),
        {},
        "x",
    ),
    "children": (children, {"max_depth": 2}, "done"),
    "tool": (
        finish("'x'", "twice('a')"),
        {"custom_tools": {"twice": lambda x: 2 * x}},
        "x",
    ),
    "model": (Fault(401), {}, "AuthenticationError"),
    "time in a cell": (repl_block("while True: pass"), {"max_timeout": 0.3}, "TimeoutExceededError"),
    "time in a call": (Reply("x", delay=60), {"max_timeout": 0.3}, "TimeoutExceededError"),
    "tokens": (FINISH, {"max_tokens": 100}, "TokenLimitExceededError"),
    "errors": (repl_block("1/0"), {"max_errors": 1}, "ErrorThresholdExceededError"),
}


def forget(ending: str) -> None:
    """Collects garbage after an error on Python 3.12 and later: a traceback and its frames may refer to each other there, and
    the frames to the input. The input's descriptor is closed without that."""
    if ending.endswith("Error") and sys.version_info >= (3, 12):
        gc.collect()


@pytest.mark.parametrize("case", ENDINGS)
async def test_a_run_that_has_ended_keeps_nothing_of_its_input(case: str) -> None:
    policy, options, expected = ENDINGS[case]
    client = ScriptedClient(policy if callable(policy) else lambda request: policy, record=False)
    rlm = RLM(client=client, **options)
    before = open_contexts()
    assert await failure(rlm, {"some": "text"}) == expected
    assert open_contexts() == before
    context = Context(["some", "text"])
    watched = weakref.ref(context)
    assert await failure(rlm, context) == expected
    del context
    forget(expected)
    assert watched() is None


@pytest.mark.parametrize("case", ["answer", "model", "tokens", "errors"])
def test_a_run_without_an_event_loop_keeps_nothing_of_its_input(case: str) -> None:
    policy, options, expected = ENDINGS[case]
    rlm = RLM(client=ScriptedClient(lambda request: policy, record=False), **options)
    prompt = _Text("some text")
    watched = weakref.ref(prompt)
    with contextlib.suppress(RLMError):
        rlm.completion(prompt, "What?")
    del prompt
    background.run(_nothing)  # the loop has finished the completion when this returns
    forget(expected)
    assert watched() is None


async def test_a_result_describes_its_input_without_a_descriptor(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("first")
    rlm = RLM(client=ScriptedClient(lambda request: FINISH, record=False))
    listed = ["a", "b"]
    inputs: list[Any] = ["text", b"bytes", listed, file, pd.DataFrame({"a": [1, 2]})]
    expected = [Context(value).describe() for value in inputs]
    before = open_contexts()
    completions = [await rlm.acompletion(value, "What?") for value in inputs]
    assert open_contexts() == before
    listed.append("later")
    file.write_text("second")
    assert [completion.to_dict()["prompt"] for completion in completions] == expected


async def test_a_result_is_described_when_its_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    rlm = RLM(client=ScriptedClient(lambda request: FINISH, record=False))
    completion = await rlm.acompletion("text", "What?")
    expected = Context("text").describe()
    monkeypatch.setattr(Context, "describe", None)
    assert completion.description == completion.to_dict()["prompt"] == expected
    copy = pickle.loads(pickle.dumps(completion))
    assert copy.to_dict() == completion.to_dict()
    assert RLMChatCompletion.from_dict(completion.to_dict()).to_dict() == completion.to_dict()


async def test_the_results_of_a_map_do_not_keep_its_inputs() -> None:
    prompt = _Text("some text")
    watched = weakref.ref(prompt)
    rlm = RLM(client=ScriptedClient(lambda request: FINISH, record=False))
    [item] = await rlm.amap([prompt], "What?")
    del prompt
    assert watched() is None
    assert item.completion is not None
    assert item.completion.to_dict()["prompt"] == Context("some text").describe()


async def test_a_context_that_the_caller_made_stays_open() -> None:
    rlm = RLM(client=ScriptedClient(lambda request: FINISH, record=False))
    context = Context(["some", "text"])
    completion = await rlm.acompletion(context, "What?")
    assert context.has_file
    assert completion.prompt is context
    assert completion.to_dict()["prompt"] == context.describe()
    assert (await rlm.amap([context], "What?"))[0].response == "done"
    assert context.value == ["some", "text"]


async def test_a_map_keeps_no_descriptors_of_good_and_failed_inputs() -> None:
    def policy(request: ChatRequest) -> Any:
        return Fault(401) if "Question: bad" in str(request.messages[1]["content"]) else FINISH

    rlm = RLM(client=ScriptedClient(policy, record=False))
    before = open_contexts()
    items = await rlm.amap([MapInput(["x"], "good"), MapInput(["x"], "bad"), {1, 2}], "What?")
    assert [type(item.error).__name__ for item in items] == [
        "NoneType",
        "AuthenticationError",
        "ContextError",
    ]
    assert open_contexts() == before


async def test_a_persistent_repl_keeps_its_contexts_until_it_is_closed() -> None:
    code = finish("repr([context_0, context])")
    rlm = RLM(client=ScriptedClient(lambda request: code, record=False), persistent=True)
    before = open_contexts()
    async with rlm:
        await rlm.acompletion(["a"], "What?")
        completion = await rlm.acompletion(["b"], "What?")
        assert completion.response == "[['a'], ['b']]"
        assert open_contexts() > before
    del rlm
    assert open_contexts() == before


def test_a_closed_context_can_be_described_but_not_sent(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("text")
    for value in ("text", ["text"], file):
        context = Context(value)
        before, described = open_contexts(), context.describe()
        context.file()
        context.close()
        context.close()
        assert open_contexts() <= before
        assert context.describe() == described
        with pytest.raises(ValueError, match="closed"):
            context.file()
        with pytest.raises(ValueError, match="closed"):
            list(context.chunks())
        with pytest.raises(ValueError, match="closed"):
            _ = context.value
    with pytest.raises(ContextError):
        Context(file.with_name("none"))
