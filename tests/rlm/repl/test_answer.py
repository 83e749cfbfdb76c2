"""Every form in which the code can set its answer."""

from __future__ import annotations

import pytest

from rlm.environments import REPL


@pytest.mark.parametrize(
    ("code", "content", "ready"),
    [
        ('answer["content"] = "42"', "42", False),
        ('answer["content"] = "42"; answer["ready"] = True', "42", True),
        ('answer["ready"] = True; answer["content"] = "42"', "42", True),
        ('answer.update(content="42", ready=True)', "42", True),
        ('answer.update({"content": "42"}); answer.setdefault("ready", True)', "42", False),
        ('answer |= {"content": "42", "ready": True}', "42", True),
        ('answer = {"content": "42", "ready": True}', "42", True),
        ('answer = {**answer, "content": "42", "ready": 1}', "42", True),
        ('answer = dict(ready=True, content="42")', "42", True),
        ('import collections; answer = collections.OrderedDict(content="42", ready=True)', "42", True),
        ('answer["content"] = 42; answer["ready"] = True', "42", True),
        ('answer["content"] = ["a", 1]; answer["ready"] = True', "['a', 1]", True),
        ('answer["content"] = 0; answer["ready"] = True', "0", True),
        ('class S(str): pass\nanswer.update(content=S("42"), ready=True)', "42", True),
        ('answer.update(content="42", ready=True); 1 / 0', "42", True),
        ('answer.update(content="42", ready=True); raise SystemExit', "42", True),
        ('answer["content"] = "42"; answer["ready"] = "False"', "42", False),
        ('answer["content"] = "42"; answer["ready"] = "true"', "42", True),
        ('def f():\n    global answer\n    answer = {"content": "42", "ready": True}\nf()', "42", True),
        ('def f(a=answer):\n    a["content"] = "42"\nf(); answer["ready"] = True', "42", True),
        ('answer["content"] = "42"; answer["ready"] = True; answer["ready"] = False', "42", False),
        ("answer.clear()", "", False),
        ('answer["content"] = "\\udc80\\0\\r\\n"', "\udc80\0\r\n", False),
    ],
)  # fmt: skip
async def test_each_form_of_setting_the_answer_works(
    repl: REPL, code: str, content: str, ready: bool
) -> None:
    answer = (await repl.execute(code)).answer
    assert (answer.content, answer.ready, answer.note) == (content, ready, None)
    # The answer stays, and `answer` is a dict with both keys again.
    later = await repl.execute('sorted(answer), type(answer["ready"]) is not None')
    assert "'content', 'ready'" in later.stdout
    assert (later.answer.content, later.answer.ready) == (content, ready)


@pytest.mark.parametrize(
    ("code", "content", "note"),
    [
        ('answer = "42"', "42", "rebound to a str"),
        ("answer = 42", "42", "rebound to a int"),
        ("del answer", "", "deleted"),
        ("answer = None", "", "None"),
        ("def answer(): pass", "", "use another name"),
        ('answer["ready"] = True', "", "content"),
        ('answer["ready"] = True; answer["content"] = None', "", "content"),
        ("class Bad:\n    def __str__(self): 1 / 0\nanswer['content'] = Bad()", "", "ZeroDivisionError"),
        ("class Bad:\n    def __bool__(self): 1 / 0\nanswer['ready'] = Bad()", "", "ZeroDivisionError"),
    ],
)
async def test_an_answer_that_cannot_work_gets_a_note(repl: REPL, code: str, content: str, note: str) -> None:
    answer = (await repl.execute(code)).answer
    assert (answer.content, answer.ready) == (content, False)
    assert answer.note is not None
    assert note in answer.note
    fixed = (await repl.execute('answer["content"] = "fixed"; answer["ready"] = True')).answer
    assert (fixed.content, fixed.ready, fixed.note) == ("fixed", True, None)


async def test_an_answer_can_be_set_ready_before_it_has_content(repl: REPL) -> None:
    assert not (await repl.execute('answer["ready"] = True')).answer.ready
    answer = (await repl.execute('answer["content"] = "late"')).answer
    assert (answer.content, answer.ready) == ("late", True)


async def test_an_interrupted_cell_keeps_its_answer(repl: REPL) -> None:
    result = await repl.execute('answer.update(content="42", ready=True)\nwhile True: pass', timeout=0.1)
    assert result.status == "interrupted"
    assert (result.answer.content, result.answer.ready) == ("42", True)


async def test_a_killed_cell_leaves_the_answer_as_it_was_before(repl: REPL) -> None:
    await repl.execute('answer["content"] = "draft"')
    result = await repl.execute("import os; answer['content'] = 'never seen'; os._exit(1)")
    assert result.status == "died"
    assert (result.answer.content, result.answer.ready) == ("draft", False)
    # The fresh namespace has that answer too.
    assert (await repl.execute("answer")).stdout == "{'content': 'draft', 'ready': False}\n"


async def test_an_answer_whose_text_takes_too_long_is_not_taken(repl: REPL) -> None:
    await repl.execute('answer["content"] = "draft"')
    result = await repl.execute(
        "class Slow:\n    def __str__(self):\n        while True: pass\nanswer['content'] = Slow()",
        timeout=0.1,
    )
    assert (result.answer.content, result.answer.ready) == ("draft", False)
    assert result.answer.note is not None


async def test_a_long_answer_arrives_whole(repl: REPL) -> None:
    result = await repl.execute("answer.update(content='é' * 3_000_000, ready=True)")
    assert result.answer.content == "é" * 3_000_000


async def test_the_note_about_an_unreadable_answer_is_one_short_line(repl: REPL) -> None:
    result = await repl.execute(
        "class C:\n    def __str__(self): raise type('A' * 3_000_000, (Exception,), {})('x')\nanswer['content'] = C()"
    )
    assert result.answer.note == f"`answer` could not be read: {'A' * 77}...: x"
