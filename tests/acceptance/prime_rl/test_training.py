"""Two steps of GRPO with prime-rl's orchestrator and env-servers, and the samples for its trainer."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

import pytest

from oolong.task import OolongData
from rlm_train.testing import ControlCall

pytestmark = pytest.mark.timeout(1_500)

SOURCE = """
[[orchestrator.{kind}.source]]
name = "{name}"
{more}
[orchestrator.{kind}.source.serve.pool]
{pool}
[orchestrator.{kind}.source.env.taskset]
id = "oolong"
split = "{split}"
sizes = [6000]
num_tasks = 32
[orchestrator.{kind}.source.env.agent]
runtime = {{ type = "subprocess" }}
[orchestrator.{kind}.source.env.agent.harness]
id = "rlm-train"
train_subcalls = {subcalls}
"""

COMMON = """
max_steps = 2
seq_len = {seq_len}
[model]
name = "{model}"
[weight_broadcast]
type = "filesystem"
[rollout_transport]
type = "filesystem"
[trainer]
{lora}
[orchestrator]
batch_size = {batch_size}
group_size = 4
max_off_policy_steps = 0
env_server_base_port = {port}
[orchestrator.concurrency]
initial_inflight = 4
min_inflight = 4
max_inflight = 8
[orchestrator.model.client]
base_url = "{url}"
[orchestrator.renderer]
name = "qwen3"
enable_thinking = false
"""

WEIGHT = 0.25
SEQ_LEN = 32_768


def fill(template: str, **values: Any) -> str:
    for name, value in values.items():
        template = template.replace("{" + name + "}", str(value))
    return template.replace("{{", "{").replace("}}", "}")


def source(name: str, pool: str, subcalls: str, *, kind: str = "train", more: str = "") -> str:
    split = "train" if kind == "train" else "eval"
    return fill(SOURCE, name=name, pool=pool, subcalls=subcalls, kind=kind, more=more, split=split)


@pytest.fixture(scope="module")
def result(train: Any) -> Any:
    """A run with three settings for sub-calls, on a static pool, an elastic pool and a single worker; and an evaluation."""
    config = (
        # Six groups per step, so that prime-rl draws from every source.
        fill(COMMON, batch_size=24, seq_len=SEQ_LEN, lora="")
        + source("masked", 'type = "static"\nnum_workers = 2', '"mask"')
        + source("trained", 'type = "elastic"\nmax_workers = 2\nmultiplex = 2', '"train"')
        + source("weighted", 'type = "static"\nnum_workers = 1', str(WEIGHT))
        + "[orchestrator.eval]\ninterval = 1\n"
        + source(
            "held-out", 'type = "static"\nnum_workers = 1', '"mask"', kind="eval", more="num_examples = 2"
        )
    )
    result = train(config, 2)
    assert result.codes["orchestrator"] == 0, result.logs["orchestrator"][-6000:]
    assert result.codes["trainer"] == 0, result.logs["trainer"]
    return result


@pytest.fixture(scope="module")
def samples(result: Any) -> list[Any]:
    """Every sample with its calls. Raises if its tokens or log-probabilities differ from those of the calls."""
    return list(result.samples())


def test_every_sample_is_what_the_model_server_saw(samples: list[Any]) -> None:
    assert {sample.step for sample in samples} == {1, 2}
    assert {sample.source for sample in samples} == {"masked", "trained", "weighted"}
    for sample in samples:
        assert sample.generations
        assert set(sample.temperatures) == {1.0}


def test_a_root_trajectory_is_one_sample(result: Any, samples: list[Any]) -> None:
    roots = [sample for sample in samples if sample.is_root]
    assert max(Counter(sample.rollout for sample in roots).values()) == 1
    assert {sample.rollout for sample in roots} == {sample.rollout for sample in samples}
    traces = result.traces()
    for sample in roots:
        turns = traces[sample.rollout]["metrics"]["turns"]
        assert len(sample.generations) == turns
    assert max(len(sample.generations) for sample in roots) >= 3


def test_sub_calls_are_trained_as_configured(result: Any, samples: list[Any]) -> None:
    asked = Counter(
        generation.session
        for generation in result.server.generations
        if generation.request.messages[0]["role"] == "user"
    )
    below: dict[str, list[Any]] = defaultdict(list)
    for sample in samples:
        if not sample.is_root:
            below[sample.rollout].append(sample)
    roots = [sample for sample in samples if sample.is_root]
    # Some questions need no sub-call; every source has some that do.
    assert {root.source for root in roots if asked[root.rollout]} == {"masked", "trained", "weighted"}
    for root in roots:
        assert len(below[root.rollout]) == (0 if root.source == "masked" else asked[root.rollout])
        # Weights exist if any sample in the same batch has them; without them the weight is 1.
        assert root.rl_weights is None or root.trained(root.rl_weights) == {1.0}
    for sample in (sample for group in below.values() for sample in group):
        assert len(sample.generations) == 1
        if sample.source == "weighted":
            assert sample.trained(sample.rl_weights) == {WEIGHT}
        else:
            assert sample.rl_weights is None or sample.trained(sample.rl_weights) == {1.0}


def test_advantages_follow_from_the_group(result: Any, samples: list[Any]) -> None:
    traces = result.traces()
    rollouts = {sample.rollout for sample in samples}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in (sample for sample in samples if sample.is_root):
        question = sample.generations[0].request.messages[1]["content"]
        groups[sample.source, question].append(sample.rollout)
    assert {len(group) for group in groups.values()} == {4}
    assert len(rollouts) == 4 * len(groups) == 48
    expected = {}
    for group in groups.values():
        rewards = [reward_of(traces[rollout]) for rollout in group]
        assert sorted(rewards) == [0.0, 0.0, 1.0, 1.0]
        expected.update({rollout: reward - 0.5 for rollout, reward in zip(group, rewards, strict=True)})
    for sample in samples:
        assert sample.trained(sample.advantages) == {expected[sample.rollout]}


def test_no_sample_is_longer_than_seq_len(samples: list[Any]) -> None:
    assert max(len(sample.token_ids) for sample in samples) <= SEQ_LEN
    # Every reply is complete, so nothing was cut.
    for sample in samples:
        assert sum(sample.mask) == sum(len(g.completion_ids) for g in sample.generations)


def test_weights_change_between_the_steps(result: Any, samples: list[Any]) -> None:
    paused = ControlCall("/pause", {"mode": "keep", "clear_cache": "false"})
    calls = result.server.calls
    assert [call.path for call in calls] == ["/pause", "/update_weights", "/resume"] * 2
    assert calls[0] == calls[3] == paused
    names = [
        call.arguments["weight_dir"].rpartition("/")[2] for call in calls if "weight_dir" in call.arguments
    ]
    assert names == ["step_0", "step_1"]
    for sample in samples:
        # Every call of a step's rollouts used that step's weights, with a salt that keeps old KV caches from being used.
        assert {generation.versions for generation in sample.generations} == {(sample.step, sample.step)}
        assert {generation.cache_salt for generation in sample.generations} == {str(sample.step - 1)}


def test_task_data_holds_no_context(result: Any) -> None:
    traces = result.traces()
    assert len(traces) >= 48 + 2
    for trace in traces.values():
        text = OolongData.model_validate(trace["task"]["data"]).materialise()
        task = json.dumps(trace["task"], ensure_ascii=False)
        assert len(text) > 5_000
        assert len(task) < 5_000
        lines = [line for line in text.splitlines() if len(line) > 40]
        assert lines
        assert not any(line in task for line in lines)


def test_the_evaluation_uses_other_texts_and_is_scored(result: Any) -> None:
    log = result.logs["orchestrator"]
    assert len(re.findall(r"Evaluated held-out \(Step \d\)", log)) >= 1
    # Evaluations send messages, not tokens.
    asked = {request.headers["x-session-id"] for request in result.server.requests}
    scored = [trace for trace in result.traces().values() if trace["id"] in asked]
    assert len(scored) >= 2
    assert not asked & {generation.session for generation in result.server.generations}
    assert all(trace["ok"] for trace in scored)
    assert 1.0 in {reward_of(trace) for trace in scored}


def test_pools_are_as_configured_and_end_with_their_servers(result: Any) -> None:
    static, elastic = result.logs["train-masked"], result.logs["train-trained"]
    assert re.search(r"workers=2/2.*elastic=False", static)
    assert re.search(r"workers=1/2 multiplex=2 elastic=True", elastic)
    assert "scaled up to 2/2 workers" in elastic
    assert "EnvServerPool" not in result.logs["train-weighted"]
    assert result.left == []
    assert {name: code for name, code in result.codes.items() if code} == {}


def reward_of(trace: dict[str, Any]) -> float:
    return float(sum(r["score"] * r.get("weight", 1.0) for r in trace["rewards"].values()))
