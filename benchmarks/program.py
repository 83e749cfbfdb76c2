"""The costs of a program: the import, and the size of a run's log."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile

from benchmarks.measure import Samples, TableRow, repeat
from rlm import RLM, RLMLogger
from rlm.testing import ScriptedClient

_TURNS = 6


async def measure() -> list[TableRow]:
    """Measures the imports and the log."""
    return [await _import("import rlm"), await _import("from rlm import RLM"), await _log()]


async def _import(code: str) -> TableRow:
    ours, least = Samples(), Samples()

    async def package() -> None:
        await asyncio.to_thread(_run, ours, code)

    async def nothing() -> None:
        await asyncio.to_thread(_run, least, "pass")

    await repeat(10, package, nothing)
    return TableRow(f"python -c '{code}'", "ms", ours.median, least.median)


def _run(samples: Samples, code: str) -> None:
    with samples.time():
        subprocess.run([sys.executable, "-c", code], check=True)


async def _log() -> TableRow:
    turns = [
        *["```repl\nprint(context[:1000])\n```"] * (_TURNS - 1),
        "```repl\nanswer.update(content=1, ready=1)\n```",
    ]
    client = ScriptedClient(lambda request: turns[request.turn])
    with tempfile.TemporaryDirectory() as folder:
        logger = RLMLogger(folder)
        async with RLM(client=client, logger=logger) as rlm:
            await rlm.acompletion("x" * 1_000_000, "What?")
        assert logger.path is not None
        size = len(await asyncio.to_thread(logger.path.read_bytes))
    return TableRow(f"log of a context of 1 MB and {_TURNS} turns", "kB", size / 1e3)
