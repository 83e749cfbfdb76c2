"""A REPL whose end is late costs neither its caller nor other REPLs anything."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from rlm import RLM
from rlm.environments import CellResult, Query, QueryReply, REPLSettings, SessionSpec
from rlm.environments.fork_server import ForkServer, fork_server
from rlm.environments.local import LocalEnvironment
from rlm.errors import REPLError, TimeoutExceededError
from rlm.repl.links import Links
from rlm.repl.session import Session
from rlm.repl.worker.protocol import frames, messages
from rlm.repl.worker.protocol.kinds import FromSupervisor, FromWorker, ToSupervisor, ToWorker
from rlm.testing import ScriptedClient, repl_block

STOP = REPLSettings(stop_grace=0.1)
SHORT, ENDLESS = 0.1, 1e6


@pytest.fixture(autouse=True)
def endless_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that waited for a late end, or for a sign of life, would wait until the test's time is up."""
    set_patience(monkeypatch, pong=ENDLESS, end=ENDLESS)


def set_patience(monkeypatch: pytest.MonkeyPatch, *, pong: float, end: float) -> None:
    """Sets how many seconds the host waits for an answer to a ping, and for a worker that leaves a checkpoint."""
    monkeypatch.setattr("rlm.repl.remote.PONG_PATIENCE", pong)
    monkeypatch.setattr("rlm.repl.remote.END_PATIENCE", end)
    monkeypatch.setattr("rlm.repl.session.END_PATIENCE", end)


async def no_queries(query: Query) -> list[QueryReply]:
    raise AssertionError


class Late:
    """A place whose REPLs never end by themselves. The supervisor answers pings, or does not."""

    def __init__(self, *, alive: bool) -> None:
        self._alive = alive
        self.killed = asyncio.Event()
        self.closed = asyncio.Event()
        self.orders: list[bytes] = []
        self._news = asyncio.Event()

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        return Links(LateLink(control, self), LateLink(work, self), self.killed.set)

    def received(self, link: LateLink, kind: bytes) -> None:
        self.orders.append(kind)
        self._news.set()
        if kind == ToWorker.OPEN:
            link.say(frames.pack(FromWorker.UP, b'{"supervisor": 1}'))
        elif kind == ToSupervisor.PING and self._alive:
            link.say(frames.pack(FromSupervisor.PONG))

    async def until(self, kind: bytes, times: int = 1) -> None:
        """Waits until the host has sent a frame of this kind so many times."""
        while self.orders.count(kind) < times:
            self._news.clear()
            await self._news.wait()


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
        self._place.closed.set()
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def after_a_stopped_cell(place: Late) -> tuple[Session, CellResult]:
    """Returns a session whose caller has stopped a cell, and what the caller got."""
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("while True: pass"))
    await place.until(ToWorker.RUN)
    session.interrupt("enough")
    return session, await cell


async def test_close_leaves_a_late_repl_to_its_supervisor_and_then_closes_the_streams() -> None:
    place = Late(alive=True)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    await session.close()
    assert ToSupervisor.END in place.orders
    await place.closed.wait()
    assert not place.killed.is_set()


async def test_a_supervisor_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    set_patience(monkeypatch, pong=SHORT, end=ENDLESS)
    place = Late(alive=False)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    await session.close()
    assert not place.killed.is_set()
    await place.killed.wait()


async def test_the_streams_of_a_late_repl_close_before_the_event_loop_does() -> None:
    places = []

    async def program() -> None:
        places.append(Late(alive=False))
        session = await Session.open(places[0], SessionSpec(settings=STOP), no_queries)
        await session.close()
        assert not places[0].closed.is_set()

    await asyncio.to_thread(asyncio.run, program())
    assert places[0].closed.is_set()


@pytest.mark.parametrize("alive", [True, False])
async def test_a_cell_that_the_caller_stops_returns_without_its_processes(alive: bool) -> None:
    place = Late(alive=alive)
    session, result = await after_a_stopped_cell(place)
    assert result.status == "killed"
    assert "enough" in str(result.error)
    assert "its processes are still ending" in str(result.error)
    await session.close()
    assert not place.killed.is_set()


async def test_a_caller_that_stops_a_cell_does_not_wait_for_the_grace_of_its_time_limit() -> None:
    settings = REPLSettings(stop_grace=0.1, interrupt_grace=ENDLESS)
    place = Late(alive=True)
    session = await Session.open(place, SessionSpec(settings=settings), no_queries)
    cell = asyncio.create_task(session.execute("while True: pass", timeout=0.05))
    await place.until(ToSupervisor.INTERRUPT)
    session.interrupt("enough")
    assert (await cell).status == "killed"
    await session.close()


async def test_the_next_cell_does_not_wait_for_a_worker_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_patience(monkeypatch, pong=ENDLESS, end=SHORT)
    place = Late(alive=True)
    session, _ = await after_a_stopped_cell(place)
    following = asyncio.create_task(session.execute("1"))
    await place.until(ToWorker.RUN, 2)
    assert not place.killed.is_set()
    await session.close()
    assert (await following).status == "killed"


async def test_a_repl_that_is_closed_while_its_worker_starts_runs_no_cell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_patience(monkeypatch, pong=ENDLESS, end=SHORT)
    place = Late(alive=True)
    session, _ = await after_a_stopped_cell(place)
    following = asyncio.create_task(session.execute("1"))
    await place.until(ToWorker.OPEN, 2)
    await session.close()
    with pytest.raises(REPLError, match="the REPL is closed"):
        await following
    assert place.orders.count(ToWorker.RUN) == 1


async def test_a_cell_at_its_time_limit_does_not_wait_for_a_checkpoint_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_patience(monkeypatch, pong=ENDLESS, end=SHORT)
    place = Late(alive=True)
    settings = REPLSettings(interrupt_grace=0.1)
    session = await Session.open(place, SessionSpec(settings=settings), no_queries)
    result = await session.execute("while True: pass", timeout=0.1)
    assert result.status == "died"
    assert "did not stop in time and was killed; the namespace is lost" in str(result.error)
    assert place.orders.index(ToSupervisor.PING) < place.orders.index(ToSupervisor.END)
    await session.close()


class Silent(Late):
    """A place whose cells end at once. Its supervisor keeps their output until `answer`."""

    def received(self, link: LateLink, kind: bytes) -> None:
        super().received(link, kind)
        if kind == ToWorker.RUN:
            end = {
                "id": self.orders.count(kind), "status": "ok", "error": None, "printed": [None, ""], "value": "",
                "traceback": "", "answer": ["42", True, None], "locals": {},
            }  # fmt: skip
            link.say(frames.pack(FromWorker.DONE, messages.dump(end)))
        elif kind == ToSupervisor.TAKE:
            self._supervisor = link

    def answer(self) -> None:
        self._supervisor.say(frames.pack(FromSupervisor.PRINTED, frames.encode({"printed": ["text", ""]})))


async def test_a_caller_does_not_wait_for_output_that_the_supervisor_keeps() -> None:
    place = Silent(alive=True)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("answer.update(content='42', ready=True)"))
    await place.until(ToSupervisor.TAKE)
    session.interrupt("enough")
    result = await cell
    assert (result.status, result.answer.content) == ("ok", "42")
    await session.close()


async def test_output_that_comes_after_its_caller_has_left_keeps_the_namespace() -> None:
    place = Silent(alive=True)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("1"))
    await place.until(ToSupervisor.TAKE)
    session.interrupt("enough")
    assert (await cell).stdout == ""
    following = asyncio.create_task(session.execute("2"))
    place.answer()
    await place.until(ToSupervisor.TAKE, 2)
    place.answer()
    assert (await following).stdout == "text"
    assert place.orders.count(ToWorker.OPEN) == 1
    await session.close()


async def test_a_cell_that_waits_for_late_output_of_the_one_before_ends_with_its_repl() -> None:
    place = Silent(alive=True)
    session = await Session.open(place, SessionSpec(settings=STOP), no_queries)
    cell = asyncio.create_task(session.execute("1"))
    await place.until(ToSupervisor.TAKE)
    session.interrupt("enough")
    await cell
    following = asyncio.create_task(session.execute("2"))
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(REPLError, match="the REPL is closed"):
        await following
    place.answer()


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
    """Processes that a test stops. They continue at its end."""
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


async def test_a_late_end_does_not_change_the_namespaces_of_other_repls(
    stopped: list[psutil.Process],
) -> None:
    place = LocalEnvironment(isolation="process")
    late, other = [await place.open(SessionSpec(settings=STOP), no_queries) for _ in range(2)]
    await other.execute("kept = 7")
    cell = asyncio.create_task(late.execute("while True: pass"))
    await asyncio.sleep(0)  # the cell has been sent
    stopped.append(fork_server_process())
    stopped[0].suspend()
    late.interrupt("enough")
    assert (await cell).status == "killed"
    await late.close()
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
        with pytest.raises(TimeoutExceededError):
            await rlm.acompletion("x", "?")
        assert stopped


async def test_thirty_large_processes_delay_neither_a_run_nor_another_repl() -> None:
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
    await heavy.close()
    assert (await other.execute("kept")).stdout == "7\n"
    await other.close()


async def test_a_cancelled_start_does_not_wait_for_a_late_fork_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, go_on, over = asyncio.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def start(self: ForkServer, fds: list[int], settings: Any) -> Callable[[], None]:
        loop.call_soon_threadsafe(asked.set)
        go_on.wait()
        for fd in fds:
            os.fstat(fd)  # raises if the caller has closed it
        loop.call_soon_threadsafe(over.set)
        return lambda: None

    monkeypatch.setattr(ForkServer, "running", False)
    monkeypatch.setattr(ForkServer, "start", start)
    opening = asyncio.create_task(LocalEnvironment(isolation="process").open(SessionSpec(), no_queries))
    await asked.wait()
    opening.cancel()
    await asyncio.wait([opening])
    assert not over.is_set()
    go_on.set()
    await over.wait()
