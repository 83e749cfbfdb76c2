"""Settings of Python's garbage collector for a worker that runs hundreds of rollouts."""

from __future__ import annotations

import gc

# Allocations before a collection of the youngest generation, and collections of a generation before one of the next.
# Python's defaults are 700, 10, 10; the start of one rollout alone exceeds them.
_THRESHOLDS = (20_000, 20, 20)

_settled = False


def settle_collector() -> None:
    """Excludes the present objects from garbage collection, and makes collections rarer. Acts once per process.

    verifiers and its imports are more than half a million objects that never become garbage. A full collection visits
    all of them and stops the event loop, for every rollout of the worker, each time that the heap has grown by a
    quarter. Objects that are garbage at the time of the call are collected first.
    """
    global _settled
    if _settled:
        return
    _settled = True
    gc.collect()
    gc.freeze()
    present = gc.get_threshold()
    gc.set_threshold(*(max(ours, theirs) for ours, theirs in zip(_THRESHOLDS, present, strict=True)))
