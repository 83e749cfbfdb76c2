"""The outcome of a rollout in `trace.info["rlm"]`: written and read back through JSON."""

from __future__ import annotations

import json
from typing import Any

import verifiers.v1 as vf

from rlm.types import RunStats
from rlm_train.rollout_info import DirectUsage, RolloutFailure, RolloutInfo, answer_of


def trace() -> vf.Trace[Any, Any, Any]:
    return vf.Trace(
        task=vf.TraceTask(type="Task", data=vf.TaskData.model_validate({"prompt": "?"})),
        agent=vf.AgentInfo(config=vf.AgentConfig.model_validate({"runtime": {"type": "subprocess"}})),
    )


def test_an_outcome_survives_json() -> None:
    info = RolloutInfo(
        answer="3",
        stop="answered",
        failure=RolloutFailure("engine", "ValueError", "no", "in f"),
        stats=RunStats(turns=2, answered=True),
        usage={"model_usage_summaries": {}},
        seconds=1.5,
        idle_turns=1,
        direct=DirectUsage(calls=4, seconds=0.5),
        root_nodes=[0, 1],
    )
    assert RolloutInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_optional_parts_are_left_out() -> None:
    data = RolloutInfo(failure=RolloutFailure("model", "ModelError", "no")).to_dict()
    assert "direct" not in data
    assert "root_nodes" not in data
    assert data["failure"] == {"where": "model", "type": "ModelError", "message": "no"}


def test_keys_of_another_version_are_ignored() -> None:
    data = {"answer": "3", "stats": {"turns": 2, "beads": 7}, "mood": "good", "failure": None}
    assert RolloutInfo.from_dict(data) == RolloutInfo(answer="3", stats=RunStats(turns=2))


def test_a_trace_of_another_harness_has_the_default_outcome() -> None:
    other = trace()
    assert RolloutInfo.of(other) == RolloutInfo()
    assert answer_of(other) == ""
    RolloutInfo(answer="3").store(other)
    assert answer_of(other) == "3"
