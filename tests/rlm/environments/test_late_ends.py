"""A REPL whose end is late costs neither its caller nor other REPLs anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from rlm import RLM
from rlm.environments import Query, QueryReply, REPLSettings, SessionSpec
from rlm.environments.fork_server import fork_server
from rlm.environments.local import LocalEnvironment
from rlm.errors import TimeoutExceededError
from rlm.repl.links import Links
from rlm.repl.session import Session
from rlm.repl.worker.protocol import frames, messages
from rlm.repl.worker.protocol.kinds import FromSupervisor, FromWorker, ToSupervisor, ToWorker
from rlm.testing import ScriptedClient, repl_block

STOP = REPLSettings(stop_grace=0.1)


async def no_queries(query: Query) -> list[QueryReply]:
    raise AssertionError


class Late:
    """A place whose REPLs never end by themselves. The supervisor answers pings, or does not."""

    def __init__(self, *, alive: bool) -> None:
        self._alive = alive
        self.killed = 0
        self.orders: list[bytes] = []

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        return Links(LateLink(control, self), LateLink(work, self), self._end_supervisor)

    def _end_supervisor(self) -> None:
        self.killed += 1

    def received(self, link: LateLink, kind: bytes) -> None:
        self.orders.append(kind)
        if kind == ToWorker.OPEN:
            link.say(frames.pack(FromWorker.UP, b'{"supervisor": 1}'))
        elif kind == ToSupervisor.PING and self._alive:
            link.say(frames.pack(FromSupervisor.PONG))


class LateLink:
    def __init__(self, protocol: asyncio.Protocol, place: Late) -> None:
        self._protocol, self._place = protocol, place
        self._frames = frames.Frames()

    def write(self, data: bytes) -> None:
        self._frames.feed(data)
        while (frame := self._frames.next()) is not None:
            self._place.received(self, frame[0])

    def say(self, data: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._protocol.data_received, data)

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm.repl.remote.PONG_PATIENCE", 0.5)
    monkeypatch.setattr("rlm.repl.remote.END_PATIENCE", 1.0)
    monkeypatch.setattr("rlm.repl.session.END_PATIENCE", 1.0)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("alive", [True, False])
async def test_close_waits_half_a_second_and_kills_only_a_supervisor_that_does_not_answer(
    alive: bool,
) -> None:
    place = Late(alive=alive)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    started = time.monotonic()
    await session.close()
    assert 0.4 < time.monotonic() - started < 0.9
    assert ToSupervisor.END in place.orders
    assert place.killed == 0
    await asyncio.sleep(0.7)
    assert place.killed == (not alive)


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("alive", [True, False])
async def test_a_cell_that_the_caller_stops_returns_in_time(alive: bool) -> None:
    place = Late(alive=alive)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("while True: pass"))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    session.interrupt("enough")
    result = await cell
    assert time.monotonic() - started < 0.9
    assert result.status == "killed"
    assert "enough" in str(result.error)
    assert "its processes are still ending" in str(result.error)
    started = time.monotonic()
    await session.close()  # which does not wait a second time
    assert time.monotonic() - started < 0.2
    await asyncio.sleep(0.7)
    assert place.killed == (not alive)


@pytest.mark.usefixtures("short_patience")
async def test_a_caller_that_stops_a_cell_does_not_wait_for_the_grace_of_its_time_limit() -> None:
    settings = REPLSettings(stop_grace=0.1, interrupt_grace=60.0)
    session = await Session.open(Late(alive=True), SessionSpec(settings=settings), no_queries)
    cell = asyncio.create_task(session.execute("while True: pass", timeout=0.05))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    session.interrupt("enough")
    assert (await cell).status == "killed"
    assert time.monotonic() - started < 0.9
    await session.close()


@pytest.mark.usefixtures("short_patience")
async def test_the_next_cell_goes_on_without_a_worker_that_does_not_end() -> None:
    place = Late(alive=True)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("while True: pass"))
    await asyncio.sleep(0.1)
    session.interrupt("enough")
    await cell
    following = asyncio.create_task(session.execute("1"))
    await asyncio.sleep(1.5)
    assert place.orders.count(ToWorker.OPEN) == 2
    assert place.killed == 0
    await session.close()
    assert (await following).status == "killed"


@pytest.mark.usefixtures("short_patience")
async def test_a_time_limit_gives_the_checkpoint_time_and_then_goes_on() -> None:
    settings = REPLSettings(interrupt_grace=0.1)
    session = await Session.open(Late(alive=True), SessionSpec(settings=settings), no_queries)
    started = time.monotonic()
    result = await session.execute("while True: pass", timeout=0.1)
    assert result.status == "died"
    assert "did not stop in time and was killed; the namespace is lost" in str(result.error)
    assert 1.5 < time.monotonic() - started < 3.0
    await session.close()


@pytest.mark.usefixtures("short_patience")
async def test_a_caller_does_not_wait_for_output_that_the_supervisor_keeps() -> None:
    end = {
        "id": 1, "status": "ok", "error": None, "printed": [None, ""], "value": "", "traceback": "",
        "answer": ["42", True, None], "locals": {},
    }  # fmt: skip

    class Silent(Late):
        def received(self, link: LateLink, kind: bytes) -> None:
            super().received(link, kind)
            if kind == ToWorker.RUN:
                link.say(frames.pack(FromWorker.DONE, messages.dump(end)))

    session = await Session.open(Silent(alive=True), SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("answer.update(content='42', ready=True)"))
    await asyncio.sleep(0.1)
    started = time.monotonic()
    session.interrupt("enough")
    result = await cell
    assert time.monotonic() - started < 0.9
    assert (result.status, result.answer.content) == ("ok", "42")
    await session.close()


async def test_a_cell_is_stopped_although_its_worker_is_being_started() -> None:
    repl = await LocalEnvironment().open(SessionSpec(settings=STOP), no_queries)
    await repl.execute("import os; os._exit(1)")
    cell = asyncio.create_task(repl.execute("while True: pass"))
    await asyncio.sleep(0)
    repl.interrupt("enough")
    result = await asyncio.wait_for(cell, 5)
    assert result.status in ("interrupted", "killed")
    assert "enough" in str(result.error)
    await repl.close()


@pytest.fixture
def stopped() -> Iterator[list[psutil.Process]]:
    """Processes that a test stops; they go on at its end."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        if process.is_running():
            process.resume()


def fork_server_process() -> psutil.Process:
    """The fork server of REPLs without a sandbox."""
    supervisor = fork_server()._process
    assert supervisor is not None
    return psutil.Process(supervisor.pid).children()[0]


async def test_a_late_end_leaves_the_namespaces_of_other_repls_alone(stopped: list[psutil.Process]) -> None:
    place = LocalEnvironment(isolation="process")
    late, other = [await place.open(SessionSpec(settings=STOP), no_queries) for _ in range(2)]
    await other.execute("kept = 7")
    cell = asyncio.create_task(late.execute("while True: pass"))
    await asyncio.sleep(0.1)
    stopped.append(fork_server_process())
    stopped[0].suspend()
    started = time.monotonic()
    late.interrupt("enough")
    assert (await cell).status == "killed"
    await late.close()
    assert time.monotonic() - started < 1.5
    await asyncio.sleep(1.0)
    stopped[0].resume()
    assert (await other.execute("kept")).stdout == "7\n"
    await other.close()


async def test_a_run_ends_in_time_although_its_repl_does_not(stopped: list[psutil.Process]) -> None:
    def reply(_: Any) -> str:
        return repl_block("print(stop())\nwhile True: pass")

    def stop() -> None:
        stopped.append(fork_server_process())
        stopped[0].suspend()

    options: dict[str, Any] = {"environment_kwargs": {"isolation": "process"}, "max_timeout": 1.0}
    async with RLM(client=ScriptedClient(reply), custom_tools={"stop": stop}, **options) as rlm:
        started = time.monotonic()
        with pytest.raises(TimeoutExceededError):
            await rlm.acompletion("x", "?")
        seconds = time.monotonic() - started
        assert stopped
        stopped[0].resume()
        await asyncio.sleep(1.0)  # the REPL ends now, while the event loop is there
    assert seconds < 2.2


async def test_thirty_large_processes_do_not_hold_up_a_run_or_another_repl() -> None:
    place = LocalEnvironment(isolation="process")
    options: dict[str, Any] = {"stop_grace": 0.1, "limits": {"memory_bytes": 8 << 30}}
    heavy = await place.open(SessionSpec(settings=REPLSettings(**options)), no_queries)
    other = await place.open(SessionSpec(), no_queries)
    await other.execute("kept = 7")
    started = await heavy.execute(
        "import os, time\nheld = bytearray(200 << 20)\n"
        "for _ in range(30):\n    if os.fork() == 0:\n        for i in range(0, len(held), 4096 * 16): held[i] = 1\n"
        "        time.sleep(1000)\ntime.sleep(1)"
    )
    assert started.status == "ok", started
    begun = time.monotonic()
    await heavy.close()
    assert time.monotonic() - begun < 1.5
    assert (await other.execute("kept")).stdout == "7\n"
    await other.close()
