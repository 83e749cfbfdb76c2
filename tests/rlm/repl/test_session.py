"""The host's side of a REPL against workers and supervisors that send malformed or forged frames."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from rlm.environments import Query, QueryReply, SessionSpec
from rlm.errors import REPLError
from rlm.repl.calls import MOST_CALLS
from rlm.repl.links import Links
from rlm.repl.relay import Relay
from rlm.repl.session import Session
from rlm.repl.tools import Toolbox
from rlm.repl.worker.protocol import frames, messages
from rlm.repl.worker.protocol.kinds import (
    GREETING,
    FromSupervisor,
    FromWorker,
    OneStream,
    ToSupervisor,
    ToWorker,
)


async def answer(query: Query) -> list[QueryReply]:
    return [QueryReply(f"{query.kind}:{prompt}") for prompt in query.prompts]


def _never() -> None:
    raise AssertionError("no supervisor here needs to be ended by force")


class Liar:
    """A place whose worker, and supervisor, answer the first cell with given bytes."""

    def __init__(self, *work: bytes, control: tuple[bytes, ...] = ()) -> None:
        self._lies = {ToWorker.RUN: work, ToSupervisor.TAKE: control}

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        ends = self.ends = [LyingLink(control, self._lies), LyingLink(work, self._lies)]
        ends[0].other, ends[1].other = ends[1], ends[0]
        return Links(ends[0], ends[1], _never)


class LyingLink:
    """Says that it is up, then sends the given bytes. Ends when it is told to."""

    other: LyingLink

    def __init__(self, protocol: asyncio.Protocol, lies: dict[bytes, tuple[bytes, ...]]) -> None:
        self.protocol = protocol
        self._lies = lies
        self._received = frames.Frames()
        self._loop = asyncio.get_running_loop()
        self._lost = False
        self.paused = asyncio.Event()

    def write(self, data: bytes) -> None:
        self._received.feed(data)
        while (frame := self._received.next()) is not None:
            if frame[0] == ToWorker.OPEN:
                self._say(frames.pack(FromWorker.UP, b'{"supervisor": 1}'))
            elif frame[0] == ToSupervisor.END:
                self.abort()
                self.other.abort()
            for lie in self._lies.get(frame[0], ()):
                self._say(lie)

    def _say(self, data: bytes) -> None:
        self._loop.call_soon(self.protocol.data_received, data)

    def pause_reading(self) -> None:
        self.paused.set()

    def resume_reading(self) -> None:
        self.paused.clear()

    def abort(self) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self.protocol.connection_lost, None)


def end(**changes: Any) -> bytes:
    result = {
        "id": 1, "status": "ok", "error": None, "printed": ["", ""], "value": "", "traceback": "",
        "answer": ["", False, None], "locals": {},
    }  # fmt: skip
    return frames.pack(FromWorker.DONE, messages.dump({**result, **changes}))


def said(kind: bytes, text: bytes) -> bytes:
    """A frame whose message has this JSON as its head."""
    head = b"[" + text + b",[]]"
    return frames.pack(kind, len(head).to_bytes(4, "big") + head)


@pytest.mark.parametrize(
    "frame",
    [
        b"garbage" * 100,
        said(FromWorker.DONE, b"no json"),
        said(FromWorker.DONE, b"[]"),
        said(FromWorker.DONE, b"{}"),
        frames.pack(FromSupervisor.ENDED, b"{}"),
        frames.pack(b"?", b"{}"),
        said(FromWorker.QUERY, b'{"id": 1}'),
        said(FromWorker.QUERY, b'{"id": "x", "kind": "llm", "prompts": [], "model": null, "batched": true}'),
        said(FromWorker.QUERY, b'{"id": 1, "kind": "shell", "prompts": [], "model": null, "batched": true}'),
        said(FromWorker.QUERY, b'{"id": 1, "kind": "llm", "prompts": 5, "model": null, "batched": true}'),
        said(FromWorker.QUERY, b'{"id": 1, "kind": "llm", "prompts": [], "model": {}, "batched": true}'),
        end(status="wonderful"),
        end(answer="short"),
        end(status="killed"),
        end(printed=[""]),
        end(locals=[]),
        end(id=2),
        said(FromWorker.DONE, b"[" * 100_000),
        said(FromWorker.DONE, b"[" + b"[]," * 200_000 + b"[]]"),
        b"D\xff\xff\xff\xff",
        FromWorker.QUERY + (messages.MOST_MESSAGE + 1).to_bytes(4, "big"),
        said(FromWorker.QUERY, b"[" + b"[]," * 1_500_000 + b"[]]"),
        said(
            FromWorker.QUERY,
            b'{"id": 1, "kind": "llm", "prompts": [%s], "model": null, "batched": true}'
            % (b"1," * 10_000 + b"1"),
        ),
        said(
            FromWorker.QUERY,
            b'{"id": 1, "kind": "llm", "prompts": [1], "model": "%s", "batched": true}' % (b"m" * 201),
        ),
        frames.pack(FromWorker.UP, b"{}"),
        frames.pack(FromWorker.QUERY, b""),
        frames.pack(FromWorker.QUERY, b"\0\0\0\xff{}"),
        frames.pack(FromWorker.QUERY, b"\xff\xff\xff\xff{}"),
    ],
)
async def test_a_malformed_frame_of_a_worker_ends_the_repl_and_not_the_host(frame: bytes) -> None:
    session = await Session.open(Liar(frame), SessionSpec(), answer)
    result = await session.execute("1")
    assert result.status == "died"
    assert result.error is not None
    assert "disturbed" in result.error
    await session.close()


@pytest.mark.parametrize(
    "frame",
    [
        b"garbage" * 100,
        frames.pack(FromSupervisor.PRINTED, b"{}"),
        frames.pack(FromSupervisor.PRINTED, b'{"printed": 5}'),
        frames.pack(b"?", b'{"printed": ["", ""]}'),
        frames.pack(FromSupervisor.ENDED, b'{"printed": ["", ""]}'),
        b"E\xff\xff\xff\xff",
    ],
)
async def test_a_malformed_frame_of_a_supervisor_ends_the_repl(frame: bytes) -> None:
    session = await Session.open(Liar(end(printed=[None, ""]), control=(frame,)), SessionSpec(), answer)
    result = await session.execute("1")
    assert result.status == "died"
    assert "disturbed" in str(result.error)
    await session.close()


async def test_a_disturbed_single_stream_ends_the_repl() -> None:
    class Noisy(Relay):
        async def open(self, *arguments: Any) -> Links:
            links = await super().open(*arguments)
            self.data_received(OneStream.WORK + b"\xff\xff\xff\xff")
            return links

    class Noise(Liar):
        async def connect(
            self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec
        ) -> Links:
            relay = Noisy(control, work)
            relay.data_received(GREETING)
            return await relay.open(LyingLink(relay, {}), spec, _never)

    with pytest.raises(REPLError, match="disturbed"):
        await Session.open(Noise(), SessionSpec(), answer)


async def test_forged_results_become_text() -> None:
    frame = end(
        printed=[5, {}], value=[1], traceback=None, error={"a": 1}, answer=[[1], 1, {}], locals={"x": [1]}
    )
    session = await Session.open(Liar(frame), SessionSpec(), answer)
    result = await session.execute("1")
    assert (result.stdout, result.stderr, result.error) == ("5\n[1]", "{}\nNone", "{'a': 1}")
    assert (result.answer.content, result.answer.ready, result.answer.note) == ("[1]", False, "{}")
    assert result.locals == {"x": "[1]"}
    await session.close()


async def test_forged_results_are_bounded() -> None:
    long = "A" * 3_000_000
    frame = end(
        error=long,
        answer=["", False, long],
        value=long,
        traceback=long,
        locals={f"{number}{long[:200]}": long[:1000] for number in range(400)},
    )
    session = await Session.open(Liar(frame), SessionSpec(), answer)
    result = await session.execute("1")
    assert (len(str(result.error)), len(str(result.answer.note))) == (500, 500)
    assert len(result.stdout) + len(result.stderr) < 2 * 20_100
    assert len(result.locals) == 301
    assert {(len(name), len(text)) for name, text in result.locals.items()} == {(100, 200)}
    await session.close()


def query(number: int, prompt: str = "x") -> bytes:
    asked = {"id": number, "kind": "llm", "prompts": [prompt], "model": None, "batched": False}
    return frames.pack(FromWorker.QUERY, messages.dump(asked))


async def turns(count: int) -> None:
    """Lets the event loop take some turns."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_flood_of_frames_leaves_the_loop_to_others() -> None:
    turn = 0
    asked: Counter[int] = Counter()

    async def count(query: Query) -> list[QueryReply]:
        asked[turn] += 1
        return [QueryReply("")]

    session = await Session.open(Liar(b"".join(map(query, range(5000))) + end()), SessionSpec(), count)
    cell = asyncio.create_task(session.execute("1"))
    while not cell.done():
        turn += 1
        await asyncio.sleep(0)
    assert (await cell).status == "ok"
    await turns(2)
    assert asked.total() == 5000
    assert max(asked.values()) <= 64
    await session.close()


@pytest.mark.parametrize(("size", "most"), [(1, MOST_CALLS), (1 << 20, 64)])
async def test_a_worker_with_too_many_queries_in_flight_is_not_read(size: int, most: int) -> None:
    asked, go = 0, asyncio.Event()

    async def wait(query: Query) -> list[QueryReply]:
        nonlocal asked
        asked += 1
        await go.wait()
        return [QueryReply("")]

    place = Liar(*(query(number, "x" * size) for number in range(600)), end())
    session = await Session.open(place, SessionSpec(), wait)
    cell = asyncio.create_task(session.execute("1"))
    await turns(2000)
    assert asked == most
    assert place.ends[1].paused.is_set()
    go.set()
    assert (await cell).status == "ok"
    await turns(10)
    assert asked == 600
    assert not place.ends[1].paused.is_set()
    await session.close()


async def test_a_worker_that_does_not_read_replies_is_not_read() -> None:
    called = 0

    async def tool() -> str:
        nonlocal called
        called += 1
        place.ends[1].protocol.pause_writing()  # as the transport does when it cannot send a reply
        return "much"

    call = frames.pack(FromWorker.CALL, frames.NUMBER.pack(1) + messages.dump(["tool", [], {}]))
    place = Liar(*[call] * 10, end())
    session = await Session.open(place, SessionSpec(tools=Toolbox.of({"tool": tool})), answer)
    cell = asyncio.create_task(session.execute("1"))
    for number in range(1, 11):
        await turns(1000)
        assert called == number
        assert place.ends[1].paused.is_set()
        place.ends[1].protocol.resume_writing()
    assert (await cell).status == "ok"
    await session.close()


async def test_a_second_end_of_a_cell_disturbs_the_stream() -> None:
    session = await Session.open(Liar(end() + end(printed=["second", ""])), SessionSpec(), answer)
    assert (await session.execute("1")).stdout == ""
    assert "disturbed" in (await session.execute("2")).stderr
    await session.close()


async def test_an_error_of_the_place_reaches_the_caller() -> None:
    class Nowhere(Liar):
        async def connect(
            self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec
        ) -> Links:
            raise REPLError("no such place")

    with pytest.raises(REPLError, match="no such place"):
        await Session.open(Nowhere(), SessionSpec(), answer)


async def test_a_supervisor_that_ends_at_once_is_an_error_that_says_why() -> None:
    class Short(Liar):
        async def connect(
            self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec
        ) -> Links:
            links = await super().connect(control, work, spec)
            last = {"status": "died", "manner": "no room", "printed": ["", "at all"]}
            control.data_received(frames.pack(FromSupervisor.ENDED, frames.encode(last)))
            control.connection_lost(None)
            work.connection_lost(None)
            return links

    with pytest.raises(REPLError, match="no room, before it could run anything\nat all"):
        await Session.open(Short(), SessionSpec(), answer)
