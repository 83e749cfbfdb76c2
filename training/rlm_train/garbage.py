"""Python's garbage collector in a worker that plays hundreds of rollouts."""

from __future__ import annotations

import gc

# Allocations before the youngest objects are looked at, and how many times before the older ones are. Python's own are 700,
# 10, 10: a rollout's start alone is more than that.
_THRESHOLDS = (20_000, 20, 20)

_done = False


def settle() -> None:
    """Takes what is there now out of the garbage collector's sight, and has it look less often. Once per process.

    verifiers and what it imports are more than half a million objects that never become garbage. A full collection visits
    them all, and stops the event loop meanwhile, for every rollout of the worker; it comes each time that the heap has grown
    by a quarter. What is garbage at the time of the call is collected first.
    """
    global _done
    if _done:
        return
    _done = True
    gc.collect()
    gc.freeze()
    now = gc.get_threshold()
    gc.set_threshold(*(max(ours, theirs) for ours, theirs in zip(_THRESHOLDS, now, strict=True)))
