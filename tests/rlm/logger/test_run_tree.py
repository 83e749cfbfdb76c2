"""The fold of events into runs, turns, cells, batches and sub-calls."""

from __future__ import annotations

import dataclasses
import gc
import random
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlm import RLM
from rlm.errors import LimitError
from rlm.events import (
    BatchEnd,
    BatchStart,
    Cell,
    CellStart,
    Compaction,
    Event,
    LimitReached,
    Reply,
    RunEnd,
    RunStart,
    Subcall,
    ToolCall,
    Turn,
    TurnStart,
)
from rlm.logger import RLMLogger, read_log
from rlm.logger.run_nodes import CellNode, RunNode
from rlm.logger.run_tree import RunTree
from rlm.testing import FINISH, ChatRequest, Fault, ScriptedClient, repl_block
from rlm.types import RLMChatCompletion, Usage, total

CELLS = (
    "print(llm_query_batched(['good', 'bad', 'good']))",
    "print(llm_query('good')); print(llm_query('bad'))",
    "print(rlm_query_batched(['below', 'fail below', 'below']))",
    "print(rlm_query('below')); tool(1)",
    "tool('x')",
    "undefined",
    "pass",
)
ENDLESS = "llm_query('good')\nwhile True: pass"


class Models:
    """A root and child runs that take random but repeatable turns."""

    def __init__(self, seed: int, *, endless: bool) -> None:
        self._random = random.Random(seed)
        self._endless = endless
        self._turns = self._random.randint(1, 4)

    def __call__(self, request: ChatRequest) -> str | Fault:
        if request.is_subcall:
            return Fault(400, "no") if "bad" in request.text else "fine"
        if "Question: Top?" not in str(request.messages[1]["content"]):
            if "fail below" in str(request.messages[1]["content"]):
                return Fault(400, "no")
            code = "print(llm_query_batched(['good', 'bad']))"
            return FINISH if request.turn else repl_block(code)
        if request.turn < self._turns:
            return "\n".join(map(repl_block, self._random.choices(CELLS, k=self._random.randint(1, 3))))
        return repl_block(ENDLESS) if self._endless else FINISH


async def recorded(
    folder: Path, seed: int, *, endless: bool = False
) -> tuple[list[Event], RLMChatCompletion | None]:
    """The log of a run with child runs, batches, tools and failures, and its result.

    Args:
        endless: the last cell does not end, until a limit stops the run.
    """
    logger = RLMLogger(log_dir=folder)
    client = ScriptedClient(Models(seed, endless=endless))
    timeout = 2.0 if endless else None
    tools = {"tool": lambda number: number + 1}
    completion: RLMChatCompletion | None
    async with RLM(client=client, logger=logger, max_depth=2, custom_tools=tools, max_timeout=timeout) as rlm:
        try:
            completion = await rlm.acompletion("text", "Top?")
        except LimitError as error:
            completion = error.completion
    assert logger.path is not None
    return read_log(logger.path), completion


def cells(run: RunNode) -> Iterator[CellNode]:
    for turn in run.turns:
        yield from turn.cells


def found(tree: RunTree) -> list[Event]:
    """All events that a tree holds."""
    events: list[Event | None] = []
    for root in tree.roots:
        for run in root.walk():
            events += [run.start, run.limit, run.end]
            for turn in run.turns:
                events += [turn.start, *turn.replies, *turn.compactions, turn.end]
            for cell in cells(run):
                events += [cell.start, *cell.tools, cell.end]
                events += [call.event for call in cell.calls]
                events += [event for batch in cell.batches for event in (batch.start, batch.end)]
    return [event for event in events if event is not None]


def counts(events: list[Event]) -> Counter[tuple[str, str]]:
    return Counter((event.run, event.type) for event in events)


def outline(run: RunNode) -> list[Any]:
    """A run and everything below it, in a form that can be compared."""
    turns = [
        [turn.number, turn.start, turn.replies, turn.end, list(map(cell_outline, turn.cells))]
        for turn in run.turns
    ]
    return [run.start, run.usage, run.limit, run.end, turns]


def cell_outline(cell: CellNode) -> list[Any]:
    batches = [
        [batch.start, batch.done, batch.failed, batch.usage, batch.end, [call.event for call in batch.calls]]
        for batch in cell.batches
    ]
    return [cell.start, cell.end, cell.tools, batches, list(map(outline, cell.children))]


# Whole runs


@pytest.mark.parametrize(("seed", "endless"), [*((seed, False) for seed in range(6)), (0, True), (1, True)])
async def test_the_tree_holds_each_event_of_a_nested_run_once(
    tmp_path: Path, seed: int, endless: bool
) -> None:
    events, completion = await recorded(tmp_path, seed, endless=endless)
    tree = RunTree.of(events)
    assert counts(found(tree)) == counts(events)
    assert tree.runs.keys() == {event.run for event in events}
    for run in tree.runs.values():
        assert run.end is not None
        own = [event for event in events if event.run == run.start.run]
        calls = [event for event in own if isinstance(event, Subcall)]
        assert [call.event for cell in cells(run) for call in cell.calls] == calls
        for batch in run.batches.values():
            inside = [event for event in calls if event.batch == batch.start.batch]
            assert [call.event for call in batch.calls] == inside
            assert (batch.done, batch.failed) == (len(inside), sum(e.error is not None for e in inside))
            assert batch.end is None or batch.start.size == batch.done or batch.end.failed > 0
        children = [
            event.run for event in events if isinstance(event, RunStart) and event.parent == run.start.run
        ]
        assert [child.start.run for child in run.children.values()] == children
        assert [child.start.run for cell in cells(run) for child in cell.children] == children
        for child in run.children.values():
            assert child.call is not None
            assert child.call.call == child.start.call
    [root] = tree.roots
    usage = total([event.usage for event in events if isinstance(event, Reply | Subcall)])
    assert root.usage == usage
    assert completion is not None
    assert usage.input_tokens == completion.usage_summary.total_input_tokens
    assert root.iterations() == completion.iterations
    assert (root.limit is not None) == endless


async def test_a_run_without_listeners_has_the_same_iterations(tmp_path: Path) -> None:
    _, logged = await recorded(tmp_path, 1)
    tools = {"tool": lambda number: number + 1}
    async with RLM(client=ScriptedClient(Models(1, endless=False)), max_depth=2, custom_tools=tools) as rlm:
        silent = await rlm.acompletion("text", "Top?")
    assert logged is not None

    def texts(completion: RLMChatCompletion) -> list[Any]:
        return [
            [
                turn.number,
                turn.response,
                turn.observation,
                turn.final_answer,
                [b.code for b in turn.code_blocks],
            ]
            for turn in completion.iterations
        ]

    def calls(completion: RLMChatCompletion) -> list[Any]:
        blocks = [block for turn in completion.iterations for block in turn.code_blocks]
        return [
            sorted((c.kind, c.response, str(c.error), c.input_tokens) for c in b.rlm_calls) for b in blocks
        ]

    assert texts(silent) == texts(logged)
    assert calls(silent) == calls(logged)


async def test_a_tree_that_is_read_after_each_event_equals_one_that_is_folded_at_once(tmp_path: Path) -> None:
    events, _ = await recorded(tmp_path, 2)
    growing = RunTree()
    for number, event in enumerate(events, 1):
        growing.take(event)
        assert counts(found(growing)) == counts(events[:number])
    assert growing.root is not None
    at_once = RunTree.of(events).root
    assert at_once is not None
    assert outline(growing.root) == outline(at_once)


async def test_a_log_of_several_completions_has_a_root_for_each(tmp_path: Path) -> None:
    first, _ = await recorded(tmp_path / "first", 3)
    second, _ = await recorded(tmp_path / "second", 4)
    pairs = random.Random(0)
    one, other, mixed = list(first), list(second), []
    while one or other:
        source = one if one and (not other or pairs.random() < 0.5) else other
        mixed.append(source.pop(0))
    tree = RunTree.of(mixed)
    outlines = {root.start.run: outline(root) for root in tree.roots}
    for events in (first, second):
        alone = RunTree.of(events).root
        assert alone is not None
        assert outlines[events[0].run] == outline(alone)


# Cut logs


async def test_a_log_that_is_cut_anywhere_is_folded_up_to_the_cut(tmp_path: Path) -> None:
    events, _ = await recorded(tmp_path / "whole", 0)
    [whole] = (tmp_path / "whole").iterdir()
    data = whole.read_bytes()
    cut = tmp_path / "cut.jsonl"
    for size in random.Random(0).sample(range(len(data)), 60):
        cut.write_bytes(data[:size])
        kept = read_log(cut)
        assert kept == events[: len(kept)]
        assert counts(found(RunTree.of(kept))) == counts(kept)


_UNFINISHED = """
import sys
import weakref
from rlm import RLM
from rlm.logger import RLMLogger
from rlm.testing import Reply, ScriptedClient, repl_block

def policy(request):
    if request.is_subcall:
        print(logger.path, flush=True)
        return Reply("late", delay=60)
    deeper = "Question: Top?" in request.messages[1]["content"]
    return repl_block("rlm_query('below')" if deeper else "llm_query('slow')")

logger = RLMLogger(log_dir=sys.argv[1])
RLM(client=ScriptedClient(policy), logger=logger, max_depth=2).completion("text", "Top?")
"""


def test_the_log_of_a_killed_process_ends_in_an_unfinished_cell(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _UNFINISHED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        process.kill()
    root = RunTree.of(read_log(path)).root
    assert root is not None
    assert root.end is None
    assert root.iterations() == []
    [cell] = root.turns[0].cells
    assert cell.start is not None
    assert cell.end is None
    [child] = cell.children
    assert (child.end, child.call) == (None, None)
    [batch] = child.batches.values()
    assert (batch.start.size, batch.done, batch.end) == (1, 0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer(Event):
    """An event of a later version."""

    type = "newer"


def head(run: str = "r", parent: str | None = None) -> dict[str, Any]:
    return {"time": 1.0, "run": run, "parent": parent, "depth": 0 if parent is None else 1}


def start(run: str = "r", parent: str | None = None, call: str | None = None) -> RunStart:
    return RunStart(
        **head(run, parent), model="m", question=None, context={}, system_prompt="", first_message="",
        max_iterations=3, max_depth=1, call=call,
    )  # fmt: skip


def subcall(batch: str = "b", call: str = "c", **others: Any) -> Subcall:
    fields = {
        "kind": "llm",
        "model": "m",
        "request": "k",
        "prompt_chars": 1,
        "prompt_head": "p",
        "response": "x",
    }
    return Subcall(**head(), **{**fields, **others}, batch=batch, index=0, call=call, seconds=0.1)


def cell_end(number: int = 1) -> Cell:
    return Cell(
        **head(), turn=1, number=number, code="x", status="ok", stdout="", stderr="", error=None, locals={}, answer={},
        seconds=0.1,
    )  # fmt: skip


BATCH = BatchStart(**head(), batch="b", kind="llm", model="m", size=1, children=False)
CELL = CellStart(**head(), turn=1, number=1, code="x")
TURN = TurnStart(**head(), turn=1)


def test_events_of_an_unknown_kind_or_run_are_skipped() -> None:
    tree = RunTree.of([start(), Newer(**head()), TurnStart(**head("other"), turn=1), TURN])
    assert found(tree) == [start(), TURN]


def test_a_child_run_whose_parent_is_not_in_the_log_is_a_root() -> None:
    tree = RunTree.of([start("child", "lost", "c")])
    assert [root.start.run for root in tree.roots] == ["child"]


@pytest.mark.parametrize(
    "starts",
    [
        [start("r", "r")],
        [start("r", "other"), start("other", "r")],
        [start("r"), start("other", "r"), start("r", "other")],
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_runs_that_are_their_own_parents_do_not_hang(starts: list[Event], whole: bool) -> None:
    tree = RunTree(whole=whole)
    reply = Reply(
        **head(), model="m", seconds=0.1, turn=1, request="k", content="x", usage=Usage(input_tokens=1)
    )
    for event in [*starts, reply, subcall()]:
        tree.take(event)
    assert tree.roots[0].usage.input_tokens == 1
    assert sum(1 for root in tree.roots for _ in root.walk()) == len(starts)


def test_a_chain_of_runs_may_be_deeper_than_the_stack() -> None:
    depth = 2 * sys.getrecursionlimit()
    tree = RunTree.of(start(str(number), str(number - 1)) for number in range(depth))
    assert [run.start.run for run in tree.roots[0].walk()] == [str(number) for number in range(depth)]


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("whole", [True, False])
def test_events_in_any_order_with_ids_that_clash_are_folded(seed: int, whole: bool) -> None:
    chance = random.Random(seed)
    tree = RunTree(whole=whole)
    for _ in range(60):
        event = chance.choice(
            [
                start(call=chance.choice(["c", "d"])),
                subcall(chance.choice("ab"), chance.choice("cd")),
                dataclasses.replace(BATCH, batch=chance.choice("ab")),
                BatchEnd(**head(), batch=chance.choice("ab"), failed=0, seconds=0.1),
                cell_end(),
                CELL,
                TURN,
            ]
        )
        run, parent = chance.choice("rst"), chance.choice([None, *"rst"])
        tree.take(dataclasses.replace(event, run=run, parent=parent))
    for part in tree.split():
        for run_node in part.roots[0].walk():
            run_node.iterations()


def test_events_without_their_beginnings_are_folded() -> None:
    turn = Turn(**head(), turn=1, observation="o", final_answer=None, seconds=0.1)
    end = BatchEnd(**head(), batch="lost", failed=0, seconds=0.1)
    compaction = Compaction(**head(), turn=1, tokens_before=2, tokens_after=1, summary="", seconds=0.1)
    limit = LimitReached(**head(), error_type="TimeoutExceededError", message="m")
    tree = RunTree.of([start(), compaction, cell_end(), subcall("lost"), end, turn, limit])
    assert tree.root is not None
    [iteration] = tree.root.iterations()
    assert iteration.code_blocks[0].rlm_calls[0].response == "x"
    assert tree.root.turns[0].compactions == [compaction]


# What belongs to which cell


def test_a_query_that_outlives_its_cell_stays_with_it() -> None:
    second = CellStart(**head(), turn=1, number=2, code="y")
    turn = Turn(**head(), turn=1, observation="o", final_answer=None, seconds=0.1)
    tree = RunTree.of([start(), TURN, CELL, BATCH, cell_end(), second, subcall(), cell_end(2), turn])
    assert tree.root is not None
    [iteration] = tree.root.iterations()
    assert [len(block.rlm_calls) for block in iteration.code_blocks] == [1, 0]


def test_a_query_before_the_first_cell_belongs_to_the_first_cell() -> None:
    tool = ToolCall(**head(), name="t", error=None, seconds=0.1)
    tree = RunTree.of([start(), TURN, BATCH, subcall(), tool, CELL, cell_end()])
    assert tree.root is not None
    [cell] = tree.root.turns[0].cells
    assert [len(cell.batches), len(cell.calls), cell.tools, cell.start] == [1, 1, [tool], CELL]


# Memory


class _Text(str):
    """A str that allows weak references."""


def test_a_tree_is_freed_without_a_garbage_collection() -> None:
    child = start("child", "r", "c")
    question = _Text("Why?")
    watched = weakref.ref(question)
    first = dataclasses.replace(start(), question=question)
    tree = RunTree.of([first, TURN, CELL, BATCH, child, subcall(), cell_end()])
    del first, question
    gc.disable()
    try:
        assert watched() is not None
        del tree
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("seed", range(3))
async def test_a_tree_that_is_not_whole_drops_finished_batches_and_child_runs(
    tmp_path: Path, seed: int
) -> None:
    events, _ = await recorded(tmp_path, seed)
    whole, light = RunTree.of(events), RunTree(whole=False)
    for event in events:
        light.take(event)
        running = {e.run for e in found(light) if isinstance(e, RunStart)}
        assert running == light.runs.keys()
    assert light.root is not None
    assert whole.root is not None
    assert light.root.usage == whole.root.usage
    assert isinstance(light.root.end, RunEnd)
    assert list(light.runs) == [light.root.start.run]
    for cell in cells(light.root):
        assert [cell.batches, cell.calls, cell.children, cell.tools] == [[], [], [], []]
