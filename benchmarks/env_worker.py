"""An environment server of verifiers with probes in its event loop. `python -m benchmarks.env_worker ADDRESS CONFIG`.

Each line on stdin ends a phase. The server then prints one JSON object with the figures of that phase.
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

# Seconds between probes of the lag.
_PERIOD = 0.01
# Seconds from which on a step counts as slow.
_SLOW = 0.05


class Probes:
    """Measures the lag of the event loop, and finds the steps that block it."""

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
        """Starts to measure every step of the loop. asyncio does this only in its debug mode, which slows down everything."""
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
        """Times garbage collections, which stop all threads."""
        now = time.perf_counter()
        if phase == "start":
            self._collecting = now
        else:
            self.collections.append(now - self._collecting)

    def _look_at_slow_steps(self) -> None:
        """Records the stack of a step that runs for too long."""
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
        """The figures since the last call: `slow`, `collecting` and `cpu` in seconds, `peak` in MB, others in milliseconds."""
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
