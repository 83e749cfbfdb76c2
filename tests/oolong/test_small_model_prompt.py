"""The prompt for small models: the rollout and the recipes in it work on lines in OOLONG's form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from oolong.window import build
from oolong.window_spec import WindowSpec
from rlm import RLM
from rlm.testing import ChatRequest, Script, ScriptedClient, finish

PROMPT = (Path(__file__).parents[2] / "configs" / "eval" / "small-model-prompt.txt").read_text(
    encoding="utf-8"
)
CELLS = re.findall(r"^```repl\n.*?^```$", PROMPT, re.MULTILINE | re.DOTALL)


def label(request: ChatRequest) -> str:
    """Labels a text as positive if its number of letters is even."""
    text = request.text.split("\n")[0].removeprefix("Review of a film: ")
    return " Positive." if len(text) % 2 == 0 else "negative"


async def run(*cells: str) -> str:
    window = build(WindowSpec(rows=30, split="eval"))
    rlm = RLM(client=ScriptedClient(Script(cells)), other_clients=[ScriptedClient(label)])
    try:
        done = await rlm.acompletion(window.text)
    finally:
        await rlm.aclose()
    assert done.stats.cell_errors == 0, done.messages
    return done.response


async def test_the_rollout_in_the_prompt_runs_as_shown() -> None:
    look, count, answer = CELLS
    window = build(WindowSpec(rows=30, split="eval"))
    expected = sum(len(entry.text) % 2 == 0 for entry in window.entries)
    assert await run(look, count, answer) == f"Answer: {expected}"


@pytest.mark.parametrize("wanted", ["max", "min"])
async def test_the_prompts_recipes_for_labels_are_right(wanted: str) -> None:
    _, count, _ = CELLS
    recipe = re.search(rf"`({wanted}\(.*?\))`", PROMPT)
    assert recipe is not None
    window = build(WindowSpec(rows=30, split="eval"))
    positive = sum(len(entry.text) % 2 == 0 for entry in window.entries)
    assert positive * 2 != len(window.entries)
    expected = "positive" if (positive * 2 > len(window.entries)) == (wanted == "max") else "negative"
    answer = finish(recipe[1])
    assert await run(count, answer) == expected


async def test_the_prompts_recipe_for_users_is_right() -> None:
    _, count, _ = CELLS
    recipe = re.search(r"`(Counter\(row\[1\].*?)`", PROMPT)
    assert recipe is not None
    window = build(WindowSpec(rows=30, split="eval"))
    users = [entry.user for entry in window.entries]
    answer = finish(recipe[1])
    assert users.count(int(await run(count, answer))) == max(map(users.count, users))


async def test_the_prompts_filter_of_users_is_right() -> None:
    _, count, _ = CELLS
    assert "users = []" in count
    window = build(WindowSpec(rows=30, split="eval"))
    user = window.entries[0].user
    count = count.replace("users = []", f'users = ["{user}", "33333"]')
    answer = finish("len(rows)")
    expected = sum(entry.user in (user, 33333) for entry in window.entries)
    assert await run(count, answer) == str(expected)
