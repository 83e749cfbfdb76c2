"""Prints every measurement beside the floor of the same run. If RLMS_PYTHON names an interpreter that has rlms 0.1.3, its
measurements are printed too (`python -m venv peer && peer/bin/pip install rlms==0.1.3`)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import program, repl, rollouts
from benchmarks.measure import TableRow


def _peer() -> dict[str, float]:
    python = os.environ.get("RLMS_PYTHON")
    if not python:
        return {}
    script = Path(__file__).with_name("peer_rlms.py")
    with rollouts.http_servers() as urls:
        done = subprocess.run(
            [python, str(script), *urls],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"the peer's measurements failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parts: list[Callable[[], Coroutine[None, None, list[TableRow]]]] = [
        repl.measure,
        rollouts.measure,
        program.measure,
    ]
    rows = [row for part in parts for row in asyncio.run(part())]
    peer = _peer()
    table = Table(title=f"Medians on {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    for name in ("measurement", "rlm", "floor", "ratio", "rlms 0.1.3"):
        table.add_column(name, justify="left" if name == "measurement" else "right")
    for row in rows:
        other = peer.get(row.name)
        table.add_row(
            f"{row.name} [{row.unit}]",
            f"{row.ours:.2f}",
            "-" if row.floor is None else f"{row.floor:.2f}",
            "-" if row.floor is None else f"{row.ours / row.floor:.2f}",
            "-" if other is None else f"{other:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
