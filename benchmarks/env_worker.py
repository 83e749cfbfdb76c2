"""An environment server of verifiers with probes in its event loop. `python -m benchmarks.env_worker ADDRESS CONFIG`.

A line on its stdin ends a phase; it then prints one JSON object about the event loop since the last one.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from verifiers.v1.serve.server import EnvServer
from verifiers.v1.utils.loaders import resolve_env_config

_PERIOD = 0.01
_SLOW = 0.05


class Probes:
    """How long the event loop keeps tasks waiting, and which single steps keep it."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.slow: list[tuple[float, str]] = []
        self.longest = 0.0
        self._collecting = 0.0
        self._began: float | None = None
        self._where = ""
        self.collections: list[float] = []
        self._cpu = time.process_time()
        self._loop_thread = threading.get_ident()

    def watch_steps(self) -> None:
        """Measures every step of the loop: asyncio itself would do so in its debug mode only, which slows all down."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            self._began = started = time.perf_counter()
            run(handle)
            seconds = time.perf_counter() - started
            self._began = None
            self.longest = max(self.longest, seconds)
            if seconds > _SLOW:
                self.slow.append((seconds, self._where))
                self._where = ""

        asyncio.Handle._run = timed  # type: ignore[assignment, method-assign]
        gc.callbacks.append(self._watch_collections)
        threading.Thread(target=self._look_at_slow_steps, daemon=True).start()

    def _watch_collections(self, phase: str, info: dict[str, int]) -> None:
        """The garbage collector stops everything, wherever it strikes."""
        now = time.perf_counter()
        if phase == "start":
            self._collecting = now
        else:
            self.collections.append(now - self._collecting)

    def _look_at_slow_steps(self) -> None:
        """Notes where a step is that has been running for too long."""
        while True:
            time.sleep(_SLOW / 5)
            began = self._began
            if began is not None and not self._where and time.perf_counter() - began > 0.8 * _SLOW:
                frame = sys._current_frames().get(self._loop_thread)
                stack = traceback.extract_stack(frame)[-4:]
                self._where = " < ".join(
                    f"{f.name} ({Path(f.filename).name}:{f.lineno})" for f in reversed(stack)
                )

    async def watch_lag(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_PERIOD)
            self.lags.append(time.perf_counter() - started - _PERIOD)

    def take(self) -> dict[str, Any]:
        """The figures since the last call, in milliseconds, seconds of CPU and megabytes."""
        lags, slow, longest = sorted(self.lags), self.slow, self.longest
        collections, self.collections = self.collections, []
        self.lags, self.slow, self.longest = [], [], 0.0
        cpu, self._cpu = time.process_time() - self._cpu, time.process_time()
        at = [lags[min(len(lags) - 1, int(len(lags) * part))] * 1e3 for part in (0.5, 0.99, 1.0)]
        return {
            "lag": at,
            "longest": longest * 1e3,
            "slow": sorted(slow, reverse=True)[:20],
            "collection": max(collections, default=0.0) * 1e3,
            "collecting": sum(collections),
            "cpu": cpu,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }


async def main(address: str, config: dict[str, Any]) -> None:
    server = EnvServer(resolve_env_config(config), address)
    probes = Probes()
    probes.watch_steps()
    lag = asyncio.create_task(probes.watch_lag())
    serving = asyncio.create_task(server.run())
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(probes.take()), flush=True)
    lag.cancel()
    serving.cancel()
    await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
