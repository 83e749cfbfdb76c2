"""The messages of a run, and its observations."""

from __future__ import annotations

import pytest

from rlm.engine.history import History, observation
from rlm.repl.interface import AnswerState, CellResult

NOTHING = AnswerState("", ready=False)


def cell(
    stdout: str = "", stderr: str = "", error: str | None = None, names: dict[str, str] | None = None
) -> CellResult:
    return CellResult("ok" if error is None else "error", stdout, stderr, error, NOTHING, names or {}, 0.5)


def test_the_history_alternates_and_only_grows() -> None:
    history = History("system", "first")
    before = history.messages
    history.add_reply({"role": "assistant", "content": "reply"})
    history.add_observation("seen")
    assert [m["role"] for m in history.messages] == ["system", "user", "assistant", "user"]
    assert history.messages[:2] == before
    assert len(before) == 2
    with pytest.raises(AssertionError, match="alternate"):
        history.add_observation("again")


def test_output_stands_before_the_error() -> None:
    text = observation([cell("before\n", "Traceback ...\nValueError: no\n", "ValueError: no")], ["Turn 2/3"])
    assert text == "Output:\nbefore\nTraceback ...\nValueError: no\n\nTurn 2/3"


def test_an_error_without_a_traceback_is_shown() -> None:
    text = observation([cell("", "", "interrupted after 5 s")], [])
    assert text == "Output:\n[interrupted after 5 s]"


def test_several_blocks_are_numbered() -> None:
    text = observation([cell("a"), cell("b")], [])
    assert text == "Output of block 1:\na\n\nOutput of block 2:\nb"


def test_a_cell_without_output_shows_the_variables() -> None:
    text = observation([cell(names={"rows": "list of 3", "n": "int"})], [])
    assert text == "Output:\n(no output)\nVariables: rows (list of 3), n (int)"
    many = observation([cell(names={f"v{i}": "int" for i in range(100)})], [])
    assert many.endswith("and 80 more")
