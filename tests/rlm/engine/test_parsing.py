"""Reading a model's reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.engine.parsing import answer_text, parse_reply


def test_blocks_come_in_their_order() -> None:
    reply = "First.\n```repl\na = 1\n```\nThen.\n```repl\nprint(a)\n```\nDone."
    assert parse_reply(reply).blocks == ["a = 1\n", "print(a)\n"]
    assert parse_reply(reply).problem is None


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("```REPL\nx = 1\n```", "x = 1\n"),
        ("``` repl\nx = 1\n```", "x = 1\n"),
        ("```repl python\nx = 1\n```", "x = 1\n"),
        ("Here it is: ```repl\nx = 1\n```", "x = 1\n"),
        ("- step\n\n  ```repl\n  x = 1\n  if x:\n      y = 2\n  ```", "x = 1\nif x:\n    y = 2\n"),
        ("\t```repl\n\tx = 1\n\t```", "x = 1\n"),
        ("```repl\n    x = 1\n    y = 2\n```", "x = 1\ny = 2\n"),
        ("```repl\r\nx = 1\r\n```\r\n", "x = 1\n"),
        ("````repl\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("```repl\nx = 1", "x = 1\n"),
        ("```repl\nx = 1\n  ```  \nbye", "x = 1\n"),
    ],
)
def test_every_form_of_a_fence_is_read(reply: str, code: str) -> None:
    assert parse_reply(reply).blocks == [code]


@pytest.mark.parametrize("character", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\t\0")
def test_line_separators_in_a_string_are_kept(character: str) -> None:
    code = f"x = 'a{character}b'\n"
    assert parse_reply(f"```repl\n{code}```").blocks == [code]


def test_blank_lines_in_a_string_are_kept() -> None:
    code = "x = '''a\n   \nb'''\nif x:\n    y = 1\n"
    assert parse_reply(f"```repl\n{code}```").blocks == [code]
    indented = "".join(f"  {line}\n" for line in code.splitlines())
    assert parse_reply(f"  ```repl\n{indented}  ```").blocks == [code]


def test_a_think_tag_in_a_string_of_the_code_does_not_end_the_thinking() -> None:
    code = "x = reply.split('</think>')[-1]; y = re.sub(r\"<think>.*?</think>\", '', x)\n"
    for before in ("", "<think>I think.</think>", "So I think.\n</think>\n"):
        assert parse_reply(f"{before}\n```repl\n{code}```").blocks == [code]


def test_a_fence_inside_a_string_does_not_cut_the_code() -> None:
    code = 'prompt = """Answer as\n```json\n{"a": 1}\n```\nand nothing else"""\nprint(prompt)\n'
    assert parse_reply(f"```repl\n{code}```\nThat is it.").blocks == [code]


def test_a_block_after_one_with_an_inner_fence_is_separate() -> None:
    first = 'p = """\n```\nx\n```\n"""\n'
    reply = f"```repl\n{first}```\nand\n```repl\nprint(p)\n```"
    assert parse_reply(reply).blocks == [first, "print(p)\n"]


def test_a_block_with_a_syntax_error_ends_at_the_first_closing_fence() -> None:
    reply = "```repl\nx = = 1\n```\ntext\n```repl\ny = 2\n```"
    assert parse_reply(reply).blocks == ["x = = 1\n", "y = 2\n"]


def test_top_level_await_counts_as_complete() -> None:
    reply = "```repl\nawait f()\n```\n```\nnot code\n```"
    assert parse_reply(reply).blocks == ["await f()\n"]


def test_thinking_is_not_run() -> None:
    reply = "<think>\n```repl\nimport os; os._exit(1)\n```\n</think>\n```repl\nx = 1\n```"
    assert parse_reply(reply).blocks == ["x = 1\n"]
    unfinished = parse_reply("<think>\n```repl\nx = 1\n```")
    assert unfinished.blocks == []
    assert unfinished.problem is not None
    assert "thinking" in unfinished.problem


def test_an_unclosed_block_of_a_truncated_reply_is_not_run() -> None:
    cut = parse_reply("```repl\ndelete_every", truncated=True)
    assert cut.blocks == []
    assert cut.problem is not None
    assert "cut off" in cut.problem
    whole = parse_reply("```repl\nx = 1\n```\nand then I", truncated=True)
    assert whole.blocks == ["x = 1\n"]
    assert whole.problem is None


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("The answer is 42.", "no ```repl block"),
        ("```python\nprint(1)\n```", "```python"),
        ("```repl\n```", "no ```repl block"),
        ("```repl\n   \n```", "no ```repl block"),
    ],
)
def test_a_reply_without_code_gets_an_instruction(reply: str, word: str) -> None:
    parsed = parse_reply(reply)
    assert parsed.blocks == []
    assert parsed.problem is not None
    assert word in parsed.problem
    assert "```repl" in parsed.problem


def test_other_fences_are_not_run() -> None:
    assert parse_reply("```text\nhello\n```\n```repl\nx = 1\n```").blocks == ["x = 1\n"]


def test_many_fences_take_linear_time() -> None:
    reply = "```repl\n" + "x = = 1\n```\n" * 20_000
    assert parse_reply(reply).blocks[0] == "x = = 1\n"


@given(st.text(alphabet="`repl \n\tx=1'\"#<>/think", max_size=300))
def test_the_parser_accepts_every_text(reply: str) -> None:
    parsed = parse_reply(reply)
    assert parsed.blocks or parsed.problem
    assert all(block.strip() for block in parsed.blocks)


@given(st.lists(st.sampled_from(["x = 1", "print('```')", "", "if x:\n    y = 2", "# ```"]), min_size=1))
def test_complete_code_comes_back_as_it_was(lines: list[str]) -> None:
    code = "\n".join([*lines, "z = 0"]).lstrip("\n")
    assert [b.strip() for b in parse_reply(f"```repl\n{code}\n```").blocks] == [code.strip()]


def test_the_text_of_an_answer_has_no_thinking() -> None:
    assert answer_text("<think>hm</think>\n Label: spam \n") == "Label: spam"
    assert answer_text("<think>never ended") == ""
