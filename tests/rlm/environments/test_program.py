"""REPLs in programs, over stdin and stdout."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlm import RLM
from rlm.context import Context
from rlm.environments import (
    Query,
    QueryReply,
    SessionSpec,
    make_environment,
    worker_archive,
)
from rlm.environments.program import ProgramEnvironment, _Program
from rlm.errors import ConfigError, REPLError
from rlm.repl.relay import Relay
from rlm.repl.worker.protocol.frames import Frames
from rlm.repl.worker.protocol.kinds import GREETING, OneStream
from rlm.testing import ScriptedClient, finish

PYTHON = [sys.executable, "{archive}"]


async def answer(query: Query) -> list[QueryReply]:
    return [QueryReply(f"{query.kind}:{prompt}") for prompt in query.prompts]


def shell(script: str) -> ProgramEnvironment:
    """A program that runs a line of shell; `$1` is Python, `$2` the archive."""
    return ProgramEnvironment(command=["/bin/sh", "-c", script, "sh", *PYTHON], start_timeout=10.0)


def test_the_name_program_selects_the_environment() -> None:
    options: dict[str, Any] = {"command": PYTHON, "cell_timeout": 20.0}
    client = ScriptedClient(lambda _: finish("context"))
    with RLM(client=client, environment="program", environment_kwargs=options) as rlm:
        assert rlm.completion("hello", "What?").response == "hello"


async def test_garbage_before_the_worker_is_skipped() -> None:
    place = shell('echo "Welcome to this machine"; head -c 100000 /dev/zero; exec "$1" "$2"')
    repl = await place.open(SessionSpec([Context("the context")]), answer)
    try:
        assert (await repl.execute("context, llm_query('x')")).stdout == "('the context', 'llm:x')\n"
    finally:
        await repl.close()


async def test_the_hash_seed_is_fixed_and_the_namespace_has_no_modules_of_ours() -> None:
    repl = await ProgramEnvironment(command=PYTHON).open(SessionSpec(), answer)
    local = await make_environment("local").open(SessionSpec(), answer)
    try:
        seed = (await repl.execute("print(hash('a'))")).stdout
        assert seed == (await local.execute("print(hash('a'))")).stdout
        assert "No module named 'worker'" in str((await repl.execute("import worker")).error)
    finally:
        await repl.close()
        await local.close()


async def test_the_program_gets_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    repl = await ProgramEnvironment(command=PYTHON).open(SessionSpec(), answer)
    try:
        code = "import os; 'OPENAI_API_KEY' in os.environ, 'PATH' in os.environ"
        assert (await repl.execute(code)).stdout == "(False, True)\n"
    finally:
        await repl.close()


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["/nowhere/python", "{archive}"], "'/nowhere/python' cannot be started: .*No such file"),
        (
            ["/bin/sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"],
            "ended before its worker started; it printed: to stdout .*exit status 3.\nto stderr",
        ),
        (["/bin/sh", "-c", "kill -9 $$"], "ended before its worker started .*exit status -9"),
        (["/bin/sh", "-c", "exec >&-; sleep 1000"], "ended before its worker started"),
        (["/bin/sh", "-c", "echo hello; sleep 1000"], "started no worker in time; it printed: hello"),
    ],
)  # fmt: skip
async def test_a_program_that_starts_no_worker_is_an_error_that_says_why(
    command: list[str], error: str
) -> None:
    place = ProgramEnvironment(command=command, start_timeout=1.0 if "echo hello" in command[-1] else 10.0)
    with pytest.raises(REPLError, match=error):
        await place.open(SessionSpec(), answer)
    children = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs([child for child in children if child.name() in ("sh", "sleep")], 10)
    assert not alive


async def test_a_program_that_dies_is_replaced() -> None:
    repl = await ProgramEnvironment(command=PYTHON).open(SessionSpec([Context("x")]), answer)
    try:
        result = await repl.execute(
            "import os, signal; os.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass"
        )
        assert result.status == "died"
        assert (await repl.execute("context")).stdout == "'x'\n"
    finally:
        await repl.close()


async def test_a_program_that_does_not_answer_is_killed_with_its_tree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlm.repl.remote.PONG_PATIENCE", 0.3)
    repl = await ProgramEnvironment(command=PYTHON).open(SessionSpec(), answer)
    await repl.execute("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    program = next(
        child for child in psutil.Process().children() if "worker.pyz" in " ".join(child.cmdline())
    )
    tree = [program, *program.children(recursive=True)]
    assert any(process.name() == "sleep" for process in tree)
    program.suspend()
    await asyncio.wait_for(repl.close(), 2.0)
    _, alive = await asyncio.to_thread(psutil.wait_procs, tree, 10)
    assert not alive


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_program_that_ignores_the_end_of_its_stdin_ends_before_its_event_loop(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm.environments.program._END_PATIENCE", 1e6)
    programs: list[psutil.Process] = []
    connection_made = _Program.connection_made

    def start(self: _Program, transport: Any) -> None:
        connection_made(self, transport)
        programs.append(psutil.Process(transport.get_pid()))
        started.set()

    monkeypatch.setattr(_Program, "connection_made", start)

    async def use() -> None:
        place = shell("sleep 1000" if end == "cancel" else '"$1" "$2"; sleep 1000')
        opening = asyncio.create_task(place.open(SessionSpec(), answer))
        await started.wait()
        if end == "cancel":
            opening.cancel()
            await asyncio.wait([opening])
        else:
            await (await opening).close()

    started = asyncio.Event()
    asyncio.run(use())
    assert not programs[0].is_running()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": "python"}, "command must be a list"),
        ({"command": []}, "command must be a list"),
        ({"command": ["python", 1]}, "command must be a list"),
        ({"command": PYTHON, "start_timeout": 0}, "start_timeout must be a positive number"),
        ({"command": PYTHON, "env": ["PATH"]}, "env must be a dict"),
        ({"command": PYTHON, "env": {1: "x"}}, "1 is no name"),
        ({"command": PYTHON, "env": {"DEBUG": 1}}, "env must be a dict of variables"),
        ({"comand": PYTHON}, "did you mean 'command'"),
        ({}, "'program' needs command in environment_kwargs"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment("program", **options)


def test_the_archive_is_the_same_for_the_same_sources(tmp_path: Path) -> None:
    first = worker_archive.archive()
    worker_archive.archive.cache_clear()
    assert worker_archive.archive() == first
    path = tmp_path / "worker.pyz"
    path.write_bytes(first)
    names = zipfile.ZipFile(path).namelist()
    assert {"__main__.py", "worker/__main__.py", "worker/protocol/kinds.py"} <= set(names)
    assert names == sorted(names)
    assert all(name.endswith(".py") for name in names)
    assert worker_archive.archive_file().read_bytes() == first
    assert worker_archive.archive_file().parent.stat().st_mode & 0o077 == 0


class SlowLink:
    """A link whose reader takes `rate` bytes at each turn, and that pauses the writer as asyncio's transports do."""

    def __init__(self, relay: Relay, rate: int) -> None:
        self._relay, self._rate = relay, rate
        self.waiting = self.most = self.total = 0
        self.hash = hashlib.sha256()
        self._frames = Frames()
        self._paused = False

    def write(self, data: bytes) -> None:
        self._frames.feed(data)
        while (frame := self._frames.next()) is not None:
            if frame[0] == OneStream.CONTEXT:
                self.hash.update(frame[1])
        self.total += len(data)
        self.waiting += len(data)
        self.most = max(self.most, self.waiting)
        if self.waiting > 1 << 16 and not self._paused:
            self._paused = True
            self._relay.pause_writing()
            asyncio.get_running_loop().call_soon(self._read)

    def _read(self) -> None:
        self.waiting = max(0, self.waiting - self._rate)
        if self.waiting > 1 << 14:
            asyncio.get_running_loop().call_soon(self._read)
        else:
            self._paused = False
            self._relay.resume_writing()

    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def test_a_large_context_waits_for_a_slow_reader() -> None:
    context = Context("0123456789" * 20_000_000)
    relay = Relay(asyncio.Protocol(), Silent())
    relay.data_received(GREETING)
    link = SlowLink(relay, 1 << 18)
    await relay.open(link, SessionSpec([context]), lambda: None)
    assert link.total > 200_000_000
    assert link.hash.hexdigest() == hashlib.sha256(b"".join(context.chunks())).hexdigest()
    assert link.most < 3 << 20


async def test_a_stream_that_ends_while_a_context_is_sent_does_not_hang() -> None:
    relay = Relay(asyncio.Protocol(), Silent())
    relay.data_received(GREETING)
    link = SlowLink(relay, 0)
    opening = asyncio.create_task(relay.open(link, SessionSpec([Context("x" * 10_000_000)]), lambda: None))
    await asyncio.sleep(0)
    relay.connection_lost(None)
    await asyncio.wait_for(opening, 5)
    assert link.total < 3 << 20


class Silent(asyncio.Protocol):
    """The protocol of a worker that hears nothing."""
