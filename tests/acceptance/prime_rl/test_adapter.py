"""Two steps with a LoRA adapter, and samples longer than seq_len."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.timeout(1_500)

SEQ_LEN = 4_096

CONFIG = f"""
max_steps = 2
seq_len = {SEQ_LEN}
[model]
name = "{{model}}"
[weight_broadcast]
type = "filesystem"
[rollout_transport]
type = "filesystem"
[trainer.model.lora]
rank = 8
[orchestrator]
batch_size = 4
group_size = 4
max_off_policy_steps = 0
env_server_base_port = {{port}}
[orchestrator.model.client]
base_url = "{{url}}"
[orchestrator.concurrency]
initial_inflight = 4
min_inflight = 4
max_inflight = 4
[orchestrator.renderer]
name = "qwen3"
enable_thinking = false
[[orchestrator.train.source]]
[orchestrator.train.source.serve.pool]
type = "static"
num_workers = 1
[orchestrator.train.source.env]
taskset = {{ id = "oolong", split = "train", sizes = [6_000] }}
agent = {{ runtime = {{ type = "subprocess" }}, harness = {{ id = "rlm-train" }} }}
"""


@pytest.fixture(scope="module")
def result(train: Any) -> Any:
    result = train(CONFIG, 2)
    assert result.codes["orchestrator"] == 0, result.logs["orchestrator"][-6000:]
    assert result.codes["trainer"] == 0, result.logs["trainer"]
    return result


def test_an_adapter_is_loaded_and_used(result: Any) -> None:
    calls = result.server.calls
    assert [call.path for call in calls] == ["/load_lora_adapter"] * 2
    [adapter] = {call.arguments["lora_name"] for call in calls}
    assert [call.arguments["lora_path"].rpartition("/")[2] for call in calls] == ["step_0", "step_1"]
    assert {generation.model for generation in result.server.generations} == {adapter}
    assert {generation.cache_salt for generation in result.server.generations} == {"0", "1"}


def test_cut_samples_can_be_told_from_the_traces(result: Any) -> None:
    """prime-rl cuts samples silently. The metric `longest_branch` can be compared with seq_len."""
    samples = result.samples(whole=False)
    lengths = [len(sample.token_ids) for sample in samples]
    assert len(samples) == 8
    assert max(lengths) == SEQ_LEN
    assert min(lengths) < SEQ_LEN
    roots = [trace["metrics"]["longest_branch"] for trace in result.shipped()]
    assert sorted(lengths) == sorted(min(SEQ_LEN, int(tokens)) for tokens in roots)
