"""Measurements of the REPL, beside a bare fork."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.floor import Floor, memfd
from benchmarks.measure import Samples, TableRow, private_megabytes, repeat
from rlm.context import Context
from rlm.environments import make_environment
from rlm.environments.isolation import Isolation
from rlm.repl.interface import Query, QueryReply, SessionSpec
from rlm.repl.repl_settings import REPLSettings

_BATCH = 1000
_CONTEXT_CHARS = 100_000_000
_REPLS = 32


async def measure() -> list[TableRow]:
    """Measures start, cell, batch, big context, memory and checkpoints of REPLs."""
    with Floor() as floor, Floor(sandboxed=True) as sandboxed:
        return [
            *await _start_and_cell(sandboxed),
            *[
                replace(row, name=f"{row.name}, no sandbox")
                for row in await _start_and_cell(floor, "process")
            ],
            *[await _batch(floor, seconds) for seconds in (0.0, 0.05)],
            *await _big_context(floor),
            *await _memory(sandboxed),
            *await _checkpoints(),
        ]


async def _echo(prompt: str) -> str:
    return prompt


async def _no_queries(query: Query) -> Sequence[QueryReply]:
    return [QueryReply("", failed=True) for _ in query.prompts]


async def _start_and_cell(floor: Floor, isolation: Isolation = "sandbox") -> list[TableRow]:
    place = make_environment("local", isolation=isolation)
    start, floor_start, cell, floor_cell = Samples(), Samples(), Samples(), Samples()

    async def ours() -> None:
        with start.time():
            repl = await place.open(SessionSpec(settings=REPLSettings(checkpoint_bytes=0)), _no_queries)
            await repl.execute("x = 1")
        for _ in range(10):
            with cell.time():
                await repl.execute("x = 1")
        await repl.close()

    async def bare() -> None:
        with floor_start.time():
            repl = await floor.open(_echo)
            await repl.execute("x = 1")
        for _ in range(10):
            with floor_cell.time():
                await repl.execute("x = 1")
        await repl.close()

    await repeat(3, ours, bare)
    for samples in (start, floor_start, cell, floor_cell):
        samples.values.clear()
    await repeat(40, ours, bare)
    return [
        TableRow("REPL start to first cell", "ms", start.median, floor_start.median),
        TableRow("cell round trip", "ms", cell.median, floor_cell.median),
    ]


async def _batch(floor: Floor, seconds: float) -> TableRow:
    async def one(prompt: str) -> str:
        await asyncio.sleep(seconds)
        return prompt

    async def answer(query: Query) -> Sequence[QueryReply]:
        return [QueryReply(text) for text in await asyncio.gather(*(one(p) for p in query.prompts))]

    place = make_environment("local")
    ours_time, floor_time = Samples(), Samples()
    repl = await place.open(SessionSpec(), answer)
    bare = await floor.open(one)

    async def ours() -> None:
        with ours_time.time():
            result = await repl.execute(f"r = llm_query_batched(['p'] * {_BATCH}); assert len(r) == {_BATCH}")
        assert result.status == "ok", result.stderr

    async def theirs() -> None:
        with floor_time.time():
            await bare.execute(f"r = ask(['p'] * {_BATCH}); assert len(r) == {_BATCH}")

    await repeat(15, ours, theirs)
    await repl.close()
    await bare.close()
    name = f"{_BATCH} batched sub-calls, frames alone, {seconds * 1000:.0f} ms"
    return TableRow(name, "ms", ours_time.median, floor_time.median)


async def _big_context(floor: Floor) -> list[TableRow]:
    place = make_environment("local")
    text = "The quick brown fox jumps over the lazy dog. 0123456789 - abcdef\n" * (_CONTEXT_CHARS // 65)
    first, second, floor_first, floor_second = Samples(), Samples(), Samples(), Samples()

    async def ours() -> None:
        with first.time():
            context = Context(text)
            repl = await place.open(SessionSpec(contexts=[context]), _no_queries)
            await repl.execute("n = len(context)")
        await repl.close()
        with second.time():
            repl = await place.open(SessionSpec(contexts=[context]), _no_queries)
            await repl.execute("n = len(context)")
        await repl.close()

    async def bare() -> None:
        with floor_first.time():
            descriptor = memfd(text)
            repl = await floor.open(_echo, descriptor)
            await repl.execute("n = len(context)")
        await repl.close()
        with floor_second.time():
            repl = await floor.open(_echo, descriptor)
            await repl.execute("n = len(context)")
        await repl.close()
        os.close(descriptor)

    await repeat(5, ours, bare)
    return [
        TableRow("100 MB context to first cell", "ms", first.median, floor_first.median),
        TableRow("the same context, next REPL", "ms", second.median, floor_second.median),
    ]


async def _memory(floor: Floor) -> list[TableRow]:
    none, kept = (
        SessionSpec(settings=REPLSettings(checkpoint_bytes=0)),
        SessionSpec(settings=REPLSettings(checkpoint_after=0.0)),
    )
    plain = await _memory_of(none)
    checkpoint = await _memory_of(kept, shared=True) - await _memory_of(none, shared=True)
    before = private_megabytes(floor.pid)
    bare = [await floor.open(_echo) for _ in range(_REPLS)]
    for child in bare:
        await child.execute("x = 1")
    least = (private_megabytes(floor.pid) - before) / _REPLS
    for child in bare:
        await child.close()
    return [
        TableRow("private memory per REPL", "MB", plain, least),
        TableRow("memory of the checkpoint of an idle REPL", "MB", checkpoint),
    ]


async def _memory_of(spec: SessionSpec, *, shared: bool = False) -> float:
    """Megabytes per REPL."""
    place = make_environment("local")
    before = private_megabytes(os.getpid(), shared=shared)
    repls = [await place.open(spec, _no_queries) for _ in range(_REPLS)]
    for repl in repls:
        for _ in range(2):  # the second cell starts when the checkpoint is made
            await repl.execute("x = 1")
    megabytes = (private_megabytes(os.getpid(), shared=shared) - before) / _REPLS
    for repl in repls:
        await repl.close()
    return megabytes


async def _checkpoints() -> list[TableRow]:
    """The cost of a checkpoint after each cell to the next cell: next cell at once, and 0.3 s later, as after a model call."""
    place = make_environment("local")
    rows = []
    for megabytes in (0, 100, 500):
        at_once, later = Samples(), Samples()
        spec = SessionSpec(settings=REPLSettings(checkpoint_bytes=1 << 40, checkpoint_after=0.0))
        repl = await place.open(spec, _no_queries)
        await repl.execute(f"big = bytearray(b'x' * {megabytes * 1_000_000})")
        for samples, seconds in ((at_once, 0.0), (later, 0.3)):
            for _ in range(12):
                await asyncio.sleep(seconds)
                with samples.time():
                    await repl.execute("x = 1")
        await repl.close()
        rows += [
            TableRow(f"cell round trip after a checkpoint of {megabytes} MB", "ms", at_once.median),
            TableRow("the same, 0.3 s after the last cell", "ms", later.median),
        ]
    return rows
