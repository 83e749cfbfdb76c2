"""Measures rlms 0.1.3 through its public interface. Runs in an interpreter that has rlms 0.1.3, and is never imported here:
that package has the same import name as this project.

    python peer_rlms.py URL_OF_0_MS URL_OF_50_MS

Its last line is one JSON object: milliseconds by the name of the measurement.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any


def _measure(rlm: Any, question: str, times: int) -> float:
    values = []
    for _ in range(times):
        started = time.perf_counter()
        completion = rlm.completion("x" * 1000, root_prompt=question)
        values.append((time.perf_counter() - started) * 1e3)
        if completion.response != "done":
            sys.exit(f"{question}: the peer answered {completion.response!r}")
    return statistics.median(values)


def main() -> None:
    from rlm import RLM

    figures = {}
    for url, latency in zip(sys.argv[1:3], ("0", "50"), strict=True):
        rlm = RLM(
            backend="vllm",
            backend_kwargs={"model_name": "scripted", "base_url": url, "api_key": "none"},
            environment="local",
        )
        for name, question, times in (
            (f"one-turn rollout, HTTP server of {latency} ms", "one turn", 5),
            (f"rollout with 1000 batched sub-calls, HTTP server of {latency} ms", "1000 sub-calls", 3),
        ):
            figures[name] = _measure(rlm, question, times)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
