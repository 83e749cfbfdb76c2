"""What `verbose=True` shows: on a terminal, through a pipe, for concurrent runs, and after the terminal has closed."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from typing import Any

import pytest

from rlm import RLM
from rlm.console.console import Console
from rlm.console.screen import Screen, Terminal
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
from rlm.testing import Answer, ChatRequest, Fault, ScriptedClient, finish, repl_block
from rlm.types import RunStats, Usage

CONTEXT = "a needle in the hay " * 500


def policy(request: ChatRequest) -> Answer:
    if request.is_subcall:
        return Fault(400, "not this one") if request.text.endswith("13") else "sub reply"
    if "Question: What" not in request.messages[1]["content"]:
        return finish("'child'")
    codes = [
        "print(llm_query('read ' + context))\n1/0",
        "print(len(llm_query_batched([f'prompt {n}' for n in range(40)])), rlm_query('below'))",
        "answer.update(content='done', ready=True)",
    ]
    return repl_block(codes[request.turn], "Look.")


def events(run: str = "abcdef012345", **kinds: Any) -> list[Event]:
    """The events of a run of one turn."""
    head: dict[str, Any] = {"time": 1.0, "run": run, "parent": None, "depth": 0}
    call: dict[str, Any] = {
        "batch": "b",
        "kind": "llm",
        "model": "small",
        "prompt_chars": 9,
        "prompt_head": "",
        "seconds": 0,
    }
    context = {"kind": "str", "size": 4, "sha256": ""}
    texts: dict[str, Any] = {"system_prompt": "", "first_message": ""}
    cell: dict[str, Any] = {"status": "ok", "stdout": kinds.get("stdout", ""), "stderr": "", "error": None}
    return [
        RunStart(**head, model="big", question="Why?", context=context, **texts, max_iterations=3, max_depth=1),
        TurnStart(**head, turn=1),
        Reply(
            **head, turn=1, model="big", request="k", message=None, content=kinds.get("reply", "x"),
            usage=Usage(100, 20, 0.5), seconds=1.0,
        ),
        CellStart(**head, turn=1, number=1, code="x"),
        BatchStart(**head, batch="b", kind="llm", model="small", size=8, children=False),
        *(
            Subcall(**head, **call, index=n, call=f"c{n}", request="k", response="", usage=Usage(10, 1), error=error)
            for n, error in enumerate([None, "no 1", "no 2", "no 3", "no 4", None])
        ),
        BatchEnd(**head, batch="b", failed=4, seconds=2.0),
        ToolCall(**head, name="look_up", error="KeyError: 'a'", seconds=0.1),
        Cell(**head, turn=1, number=1, code="x", **cell, locals={}, answer={}, seconds=2.5),
        Compaction(**head, turn=1, tokens_before=9000, tokens_after=500, summary="s", seconds=1.0),
        LimitReached(**head, error_type="TimeoutExceededError", message="too long"),
        Turn(**head, turn=1, observation="", final_answer=None, seconds=4.0),
        RunEnd(
            **head, stop="timeout", response="", error="TimeoutExceededError: too long", stats=RunStats(), usage=None,
            seconds=5.0,
        ),
    ]  # fmt: skip


def plain(shown: list[Event]) -> list[str]:
    stream = io.StringIO()
    console = Console(stream)
    for event in shown:
        console.show(event)
    return stream.getvalue().splitlines()


# Through a pipe


def test_a_pipe_gets_lines_of_text(capfd: pytest.CaptureFixture[str]) -> None:
    with RLM(client=ScriptedClient(policy), verbose=True, max_depth=2) as rlm:
        rlm.completion(CONTEXT, "What?")
    out, err = capfd.readouterr()
    assert out == ""
    assert "\x1b" not in err
    for text in (
        "▶ scripted  What?",
        "  context: str of 10,000",
        "◆ reply in ",
        "  ○ llm_query of 10,005 characters in ",
        "■ block 1: error in ",
        "  ZeroDivisionError: division by zero",
        "  ○ llm_query_batched: 40 prompts to scripted",
        "  ○ prompt 14 of 9 characters in ",
        "  ○ llm_query_batched: 40 of 40 done, 1 failed in ",
        "  ▶ scripted  (the context is the request)",
        "● answered: done",
    ):
        assert text in err, text
    root = err.splitlines()[0].split()[0]
    child = next(line for line in err.splitlines() if "(the context" in line).split()[0]
    assert re.fullmatch(r"[0-9a-f]{4}", root)
    assert re.fullmatch(f"{root}/[0-9a-f]{{4}}", child)


def test_each_event_has_its_lines_and_a_batch_only_a_few() -> None:
    assert plain(events()) == [
        "abcd ▶ big  Why?",
        "abcd   context: str of 4",
        "abcd ◆ reply in 1.0 s, 100 + 20 tokens, 0.5000 USD",
        "abcd   x",
        "abcd   ○ llm_query_batched: 8 prompts to small",
        "abcd   ○ prompt 2 of 9 characters in 0.0 s: failed: no 1",
        "abcd   ○ prompt 3 of 9 characters in 0.0 s: failed: no 2",
        "abcd   ○ prompt 4 of 9 characters in 0.0 s: failed: no 3",
        "abcd   ○ llm_query_batched: 6 of 8 done, 4 failed in 2.0 s, 60 + 6 tokens",
        "abcd   ◇ tool look_up in 0.1 s: KeyError: 'a'",
        "abcd ■ block 1: ok in 2.50 s",
        "abcd   ◌ history compacted: 9,000 to about 500 tokens in 1.0 s",
        "abcd ! TimeoutExceededError: too long",
        "abcd ● timeout: (no answer)",
        "abcd   TimeoutExceededError: too long",
        "abcd   5.0 s, 160 + 26 tokens, 0.5000 USD",
    ]


def test_long_texts_are_cut() -> None:
    shown = plain(events(stdout="".join(f"line {n} {'x' * 1000}\n" for n in range(100))))
    assert "abcd   ... 70 more lines" in shown
    assert max(map(len, shown)) < 320


def test_control_sequences_are_taken_out() -> None:
    shown = "\n".join(
        plain(events(stdout="a\x1b[2Jb\x1b]0;title\x07c\x9b1md\re", reply="[bold]no markup[/bold]"))
    )
    assert "ab]0;titlec1mde" in shown
    assert "[bold]no markup[/bold]" in shown


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdef-123456")
    assert "abcd   the key is [redacted]!" in plain(events(stdout="the key is abcdef-123456!"))


def test_characters_that_the_encoding_of_a_stream_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    console = Console(io.TextIOWrapper(raw, encoding="ascii"))
    for event in events(reply="ä \ud800"):
        console.show(event)
    assert rb"\xe4 \ud800" in raw.getvalue()


async def test_lines_of_concurrent_runs_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    def completions() -> None:
        for n in range(4):
            rlm.completion(CONTEXT, f"What {n}?")

    with RLM(client=ScriptedClient(policy), verbose=True, max_depth=2) as rlm:
        threads = [threading.Thread(target=completions) for _ in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(rlm.acompletion(CONTEXT, f"What {n}?") for n in range(4)))
        for thread in threads:
            thread.join()
    lines = capfd.readouterr().err.splitlines()
    runs: dict[str, list[str]] = {}
    for line in lines:
        name, _, text = line.partition(" ")
        assert re.fullmatch(r"[0-9a-f]{4}(/[0-9a-f]{4})?", name), line
        if "/" not in name:
            runs.setdefault(name, []).append(re.sub(r"[\d.]+ s\b|\d\?", "", text))
    assert len(runs) == 16
    first, *others = runs.values()
    assert all(other == first for other in others)


# On a terminal


_SCRIPT = """
import sys
from rlm import RLM
from rlm.testing import ScriptedClient
sys.path.insert(0, sys.argv[1])
from test_console import CONTEXT, policy

with RLM(client=ScriptedClient(policy, latency=0.15), verbose=True, max_depth=2) as rlm:
    print(rlm.completion(CONTEXT, "What?").response)
print("the end")
"""


def in_a_terminal(*, columns: int = 100, **variables: str) -> str:
    """Runs a program that asks one question in a terminal, and returns all that it sends to the terminal."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    folder = os.fspath(__file__).rpartition("/")[0]
    command = [sys.executable, "-c", _SCRIPT, folder]
    with subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(main, 65536):
                shown += piece
        except OSError:  # the end of a terminal on Linux
            pass
    os.close(main)
    assert process.returncode == 0
    return shown.decode()


class Page:
    """A terminal for the few control sequences that rich uses here."""

    def __init__(self, text: str) -> None:
        self.lines = [""]
        self.row = 0
        self.most = 0
        """The most lines that were shown at once."""
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r\n|\n|\r|[^\x1b\r\n]+", text):
            self._take(piece)

    def _take(self, piece: str) -> None:
        if piece in ("\r\n", "\n"):
            self.row += 1
            while len(self.lines) <= self.row:
                self.lines.append("")
        elif piece == "\x1b[2K":
            self.lines[self.row] = ""
        elif piece.endswith("A") and piece.startswith("\x1b["):
            self.row -= int(piece[2:-1] or 1)
        elif not piece.startswith("\x1b") and piece != "\r":
            self.lines[self.row] += piece
        self.most = max(self.most, sum(map(bool, self.lines)))


def test_a_terminal_shows_a_tree_while_the_run_goes_on() -> None:
    shown = in_a_terminal()
    for text in ("turn 2/30: running block 1", "llm_query_batched", "/40", "1 failed", "━", "tokens"):
        assert text in shown, text
    assert re.search(r"▶ scripted  .*\(?[0-9a-f]{4}", shown)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") > 0  # the cursor is shown again
    page = Page(shown)
    text = "\n".join(page.lines)
    assert "turn 2/30" not in text  # the tree has been removed
    assert text.count("▶ scripted  What?") == 1
    assert text.count("ZeroDivisionError: division by zero") == 1
    assert text.count("● answered: done") == 1
    assert "\ndone" in text  # printed by the program
    assert list(filter(None, page.lines))[-1] == "the end"


def test_a_dumb_terminal_gets_lines_of_text() -> None:
    shown = in_a_terminal(TERM="dumb")
    assert "\x1b" not in shown
    assert "● answered: done" in shown


def test_a_narrow_terminal_shows_the_answer() -> None:
    text = "\n".join(Page(in_a_terminal(columns=30)).lines)
    assert "● answered: done" in text


def test_several_runs_share_the_terminal() -> None:
    stream = io.StringIO()
    screen = Screen(Terminal(file=stream, force_terminal=True, width=100, height=50))
    first, second = (list(events(run)) for run in ("1111aaaa", "2222bbbb"))
    consoles = Console(screen), Console(screen)
    for pair in zip(first, second, strict=True):
        for console, event in zip(consoles, pair, strict=True):
            console.show(event)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "1111 ■ block 1: ok in 2.50 s" in text
    assert "2222 ■ block 1: ok in 2.50 s" in text
    page = Page(stream.getvalue())
    assert sum("▶ big  Why?" in line for line in page.lines) == 2
    assert not any("turn 1/3" in line for line in page.lines)


# Failures


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_terminal_is_reported_once(terminal: bool, caplog: pytest.LogCaptureFixture) -> None:
    stream = Broken()
    to = Screen(Terminal(file=stream, force_terminal=True, width=100)) if terminal else stream
    console = Console(to)
    for event in events():
        console.show(event)
    assert len(caplog.records) == 1
    assert "the run is no longer shown" in caplog.records[0].getMessage()


def test_a_closed_pipe_does_not_end_the_run() -> None:
    read, write = os.pipe()
    os.close(read)
    folder = os.fspath(__file__).rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, folder], stdout=subprocess.PIPE, stderr=write, text=True, check=False
    )
    os.close(write)
    assert done.stdout.splitlines() == ["done", "the end"]


def test_events_of_an_unknown_run_raise_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert plain(events()[1:])[-1].startswith("abcd   5.0 s")
    assert caplog.records == []
