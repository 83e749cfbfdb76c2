"""What the engine leaves in `trace.info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace
if TYPE_CHECKING:
    from rlm_train.token_masks import AnyTrace


def info_of(trace: AnyTrace) -> Mapping[str, Any]:
    """What the harness wrote of a rollout, see `rlm_train.RLMHarness`; empty if another harness ran."""
    return trace.info.get(INFO_KEY) or {}


def stats_of(trace: AnyTrace) -> Mapping[str, float]:
    """`rlm.types.RunStats` of a rollout by name; empty if another harness ran."""
    return info_of(trace).get("stats") or {}


def answer_of(trace: AnyTrace) -> str:
    """The answer that the RLM set: the only text that a reward should read. Empty if there is none."""
    answer = info_of(trace).get("answer")
    return answer if isinstance(answer, str) else ""


INFO_KEY = "rlm"
"""`trace.info[INFO_KEY]` holds what a rollout came to: see `RLMHarness`."""
