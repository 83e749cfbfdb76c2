"""The garbage collector of a worker."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rlm.testing import finish

_CHILD = """
import gc, json, weakref
from rlm_train.garbage_collector import settle_collector

class Loop:
    pass

def garbage():
    loop = Loop()
    loop.loop = loop
    return weakref.ref(loop)

gc.disable()
before = garbage()
kept = Loop()
settle_collector()
frozen = gc.get_freeze_count()
first = gc.get_threshold()
after = garbage()
gc.collect()
gc.set_threshold(1, 1, 1)
settle_collector()
print(json.dumps([before() is None, after() is None, frozen, first, gc.get_threshold()]))
"""


def test_settling_freezes_present_objects_and_later_garbage_is_collected() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    result: list[Any] = json.loads(done.stdout)
    before, after, frozen, thresholds, second = result
    assert before
    assert after
    assert frozen > 1000
    assert thresholds[0] >= 20_000
    assert second == [1, 1, 1]  # the second call has no effect


async def test_a_rollout_settles_the_collector_unless_the_config_forbids_it(
    run: Any, monkeypatch: Any
) -> None:
    calls: list[None] = []
    monkeypatch.setattr("rlm_train.harness.settle_collector", lambda: calls.append(None))
    answer = finish('"3"')
    await run(lambda request: answer, settle_collector=False)
    assert calls == []
    await run(lambda request: answer)
    assert calls == [None]
