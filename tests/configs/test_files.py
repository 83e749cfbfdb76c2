"""The launch files for prime-rl, checked without it: against the JSON schema of its commands, and the settings of the
environment against our own classes. `tests/acceptance/prime_rl` checks them with prime-rl itself."""

from __future__ import annotations

import copy
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import verifiers.v1 as vf

from oolong.taskset import OolongConfig, OolongTaskset
from rlm_train import RLMHarnessConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
COMMANDS = {
    **dict.fromkeys(sorted((CONFIGS / "rl").glob("*.toml")), "rl"),
    **dict.fromkeys(sorted((CONFIGS / "sft").glob("*.toml")), "sft"),
    **dict.fromkeys(sorted((CONFIGS / "inference").glob("*.toml")), "inference"),
    CONFIGS / "eval" / "prime-rl-evals.toml": "evals",
    CONFIGS / "eval" / "prime-rl-env-server.toml": "env-server",
}
FETCHED = ("spam", "trec_coarse")

every_file = pytest.mark.parametrize("file", COMMANDS, ids=lambda file: str(file.relative_to(CONFIGS)))
every_rl_file = pytest.mark.parametrize(
    "file", [file for file, command in COMMANDS.items() if command == "rl"], ids=lambda file: file.stem
)
every_file_with_tasks = pytest.mark.parametrize(
    "file",
    [file for file, command in COMMANDS.items() if command != "inference"],
    ids=lambda file: str(file.relative_to(CONFIGS)),
)


def read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8"))


def sources(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables that hold an `env` block, each with "train" or "eval"."""
    data = read(file)
    if COMMANDS[file] == "env-server":
        yield "eval", data
    orchestrator = data.get("orchestrator", {})
    yield from (("train", source) for source in orchestrator.get("train", {}).get("source", ()))
    yield from (("eval", source) for source in (orchestrator or data).get("eval", {}).get("source", ()))


def environment(block: dict[str, Any]) -> Any:
    """An `env` block as verifiers reads it, with the text of the package as its source."""
    block = copy.deepcopy(block)
    if block["taskset"].get("source") in FETCHED:
        del block["taskset"]["source"]
    config_type = importlib.import_module("verifiers.v1.configs.cli.eval").EvalConfig
    return config_type.model_validate({"env": block}).env


@cache
def schema() -> dict[str, Any]:
    loaded = json.loads((Path(__file__).parent / "prime_rl.schema.json").read_text(encoding="utf-8"))
    loaded["$defs"]["EnvConfig"] = {}  # its class depends on the id; see `environment`
    assert isinstance(loaded, dict)
    return loaded


_NO_DEFAULT = object()


def variant(node: dict[str, Any], value: Any, default: Any) -> tuple[dict[str, Any], str | None]:
    """The part of a schema that applies to a value, and the key that selected it among several variants, if any."""
    if "$ref" in node:
        return variant(schema()["$defs"][node["$ref"].rpartition("/")[2]], value, default)
    if "discriminator" in node:
        tag = node["discriminator"]["propertyName"]
        chosen = value.get(tag, default.get(tag) if isinstance(default, dict) else None)
        return schema()["$defs"][node["discriminator"]["mapping"][chosen].rpartition("/")[2]], tag
    for option in node.get("anyOf", ()):
        found, tag = variant(option, value, default)
        if isinstance(value, dict) and "properties" in found:
            return found, tag
    return node, None


def named(node: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of a schema for one key of a table."""
    found = node.get("properties", {}).get(name, node.get("additionalProperties"))
    return found if isinstance(found, dict) else {}


def leaves(
    node: dict[str, Any], value: Any, default: Any = _NO_DEFAULT, place: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The values of a file, each with its place and its default in the schema."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        for number, item in enumerate(value):
            yield from leaves(node["items"], item, place=f"{place}.{number}")
        return
    if not isinstance(value, dict):
        yield place.lstrip("."), value, default
        return
    found, tag = variant(node, value, default)
    for name, item in value.items():
        below = named(found, name)
        usual = below.get("default", _NO_DEFAULT) if name != tag else _NO_DEFAULT
        if isinstance(default, dict) and default.get(tag or "") == value.get(
            tag or "", default.get(tag or "")
        ):
            usual = default.get(name, usual)
        if below.get("$ref") != "#/$defs/EnvConfig":
            yield from leaves(below, item, usual, f"{place}.{name}")


def tagged(node: dict[str, Any], value: Any, default: Any = None) -> Any:
    """A value in which the variants that the file leaves to the default are named, as prime-rl does."""
    if isinstance(value, list):
        return [tagged(node.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    found, tag = variant(node, value, default)
    filled = {
        name: tagged(below, item, below.get("default"))
        for name, item in value.items()
        for below in [named(found, name)]
    }
    # Only keys named `type` are filled in. A renderer must be named in the file.
    return {tag: default[tag], **filled} if tag == "type" and isinstance(default, dict) else filled


def dig(data: Any, path: str) -> Any:
    for step in path.split("."):
        data = data[int(step)] if isinstance(data, list) else data[step]
    return data


def test_the_folders_hold_the_documented_files() -> None:
    stems = {
        command: {file.stem for file, other in COMMANDS.items() if other == command}
        for command in COMMANDS.values()
    }
    assert stems["rl"] == {
        "oolong-qwen3-30b-a3b",
        "oolong-qwen3-8b",
        "oolong-qwen3-4b",
        "oolong-qwen3-4b-thinking",
        "oolong-multitask",
        "oolong-smoke",
    }
    assert stems["sft"] == {"rlm-qwen3-8b"}


@every_file
def test_a_file_begins_with_command_hardware_and_first_changes(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    start = re.match(r"(#.*\n)+", text)
    assert start is not None
    assert f" @ {file.relative_to(ROOT)}" in start[0]
    if COMMANDS[file] in ("rl", "sft"):
        assert "# Hardware: " in start[0]
        assert "Expect " in start[0]
        assert re.search(r"an estimate|[Ee]stimates", start[0]), "no run of this length was made"
    if COMMANDS[file] != "inference":
        assert "Change first: " in start[0]
    fetched = any(source["env"]["taskset"].get("source") in FETCHED for _, source in sources(file))
    assert ("make oolong-sources" in start[0]) is fetched
    assert max(map(len, text.splitlines())) <= 140


@every_file
def test_a_file_fits_the_schema(file: Path) -> None:
    node = schema()["commands"][COMMANDS[file]]
    document = {"$defs": schema()["$defs"], **node}
    jsonschema.Draft202012Validator(document).validate(tagged(node, read(file)))


def test_the_schema_refuses_wrong_files() -> None:
    """Former keys of prime-rl, and typing errors, are refused."""
    node = schema()["commands"]["rl"]
    validator = jsonschema.Draft202012Validator({"$defs": schema()["$defs"], **node})
    good = read(CONFIGS / "rl" / "oolong-qwen3-4b.toml")
    for path, name, value in (
        ("", "wandb", {"project": "old"}),
        ("orchestrator", "rollouts_per_example", 4),
        ("orchestrator.eval", "eval_base_model", True),
        ("trainer.optim", "lr", "1e-5"),
        ("trainer.model.lora", "rank", 0),
        ("orchestrator", "renderer", {"thinking_retention": "all"}),
    ):
        wrong = copy.deepcopy(good)
        (dig(wrong, path) if path else wrong)[name] = value
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(tagged(node, wrong))


@every_file
def test_no_value_repeats_a_default(file: Path) -> None:
    node = schema()["commands"][COMMANDS[file]]
    found = list(leaves(node, read(file)))
    assert found
    # A pool with any setting must name its type: that default is made by a function, which the schema does not show.
    assert [
        place
        for place, value, default in found
        if (value, type(value)) == (default, type(default)) and not place.endswith("serve.pool.type")
    ] == []


def test_a_repeated_default_is_found() -> None:
    data = read(CONFIGS / "rl" / "oolong-qwen3-4b.toml")
    data["trainer"]["optim"]["max_norm"] = 1.0
    data["trainer"]["optim"]["type"] = "adamw"
    data["orchestrator"]["max_off_policy_steps"] = 8
    data["deployment"] = {"num_train_gpus": 1}
    data["orchestrator"]["train"]["source"][0]["curriculum"]["gates"]["equal_rewards"]["reject_max"] = 0.0
    repeated = {
        place
        for place, value, default in leaves(schema()["commands"]["rl"], data)
        if value == default and not place.endswith("serve.pool.type")
    }
    assert repeated == {
        "trainer.optim.max_norm",
        "trainer.optim.type",
        "orchestrator.max_off_policy_steps",
        "deployment.num_train_gpus",
        "orchestrator.train.source.0.curriculum.gates.equal_rewards.reject_max",
    }


@every_file_with_tasks
def test_environments_are_complete(file: Path) -> None:
    found = list(sources(file))
    assert found
    for _, source in found:
        env = environment(source["env"])
        assert isinstance(env.taskset, OolongConfig)
        if source.get("serve", {}).get("address") and COMMANDS[file] == "evals":
            assert "agent" not in source["env"], "the env server's own block is the one that counts"
            continue
        agent = env.agent
        assert isinstance(agent.harness, RLMHarnessConfig)
        assert agent.runtime.type == "subprocess"
        assert agent.timeout.rollout is not None
        assert agent.harness.cell_timeout < agent.timeout.rollout or agent.timeout.rollout <= 120
        assert agent.max_turns is None, "it would count sub-calls"


@every_file_with_tasks
def test_no_value_of_an_environment_repeats_a_default(file: Path) -> None:
    for _, source in sources(file):
        block = source["env"]
        whole = environment(block).model_dump(mode="json")
        for place in [place for place, _, _ in leaves({}, block)]:
            *path, name = place.split(".")
            less = copy.deepcopy(block)
            del dig(less, ".".join(path))[name]
            try:
                changed = environment(less).model_dump(mode="json") != whole
            except (ValueError, KeyError):
                continue  # the value is required
            assert changed or block["taskset"].get(name) in FETCHED, place


@every_file_with_tasks
def test_every_source_has_tasks(file: Path) -> None:
    for _, source in sources(file):
        config = environment(source["env"]).taskset
        config = config.model_copy(update={"num_tasks": min(config.num_tasks, 6)})
        assert len(list(OolongTaskset(config).load())) == config.num_tasks


@every_rl_file
def test_training_and_evaluation_share_no_text(file: Path) -> None:
    splits = [(kind, source["env"]["taskset"].get("split", "eval")) for kind, source in sources(file)]
    assert {kind for kind, _ in splits} == {"train", "eval"}
    assert all(kind == split for kind, split in splits)
    seeds = [source["env"]["taskset"].get("seed") for kind, source in sources(file) if kind == "train"]
    assert len(seeds) == len(set(seeds))


@every_rl_file
def test_lengths_fit_each_other(file: Path) -> None:
    data = read(file)
    if "inference" in data:
        window = dig(data, "inference.vllm.max_model_len")
    else:
        server = read(CONFIGS / "inference" / file.name)["vllm"]
        window = server["max_model_len"]
        assert server.get("model") == data.get("model", {}).get("name")
    assert data["seq_len"] == window, "longer trajectories would be cut, shorter ones waste memory"
    for kind in ("train", "eval"):
        reply = dig(data, f"orchestrator.{kind}.sampling.max_completion_tokens")
        assert reply <= window // 4, "a few turns have to fit"
    # Within one process: a prompt of the length in the system prompt, at 2.7 characters per token.
    assert window >= 100_000 / 2.7 or file.stem == "oolong-smoke"


@every_rl_file
def test_batches_are_whole_groups(file: Path) -> None:
    orchestrator = read(file)["orchestrator"]
    train = [source for kind, source in sources(file) if kind == "train"]
    sizes = [source.get("group_size", orchestrator["group_size"]) for source in train]
    assert all(orchestrator["batch_size"] % size == 0 for size in sizes)
    assert orchestrator["concurrency"]["max_inflight"] >= orchestrator["batch_size"]
    assert sum(source["env"]["taskset"]["num_tasks"] for source in train) >= orchestrator[
        "batch_size"
    ] // min(sizes)


@every_rl_file
def test_thinking_is_set_equally_in_training_and_evaluation(file: Path) -> None:
    """Training uses the renderer, evaluation the server's chat template."""
    orchestrator = read(file)["orchestrator"]
    renderer = orchestrator.get("renderer", {})
    template = orchestrator["eval"]["sampling"].get("extra_body", {}).get("chat_template_kwargs", {})
    assert renderer.get("enable_thinking") == template.get("enable_thinking")
    name = read(file).get("model", {}).get("name", "Qwen/Qwen3-0.6B")
    # Otherwise each turn is a sample: tests/training/test_thinking.py
    if "Thinking" in name or "Instruct" in name:
        assert renderer["thinking_retention"] == "all"
        assert "enable_thinking" not in renderer, "their template knows no such thing"
    else:
        assert renderer["enable_thinking"] is False


def test_the_large_run_has_the_documented_sizes() -> None:
    file = CONFIGS / "rl" / "oolong-qwen3-30b-a3b.toml"
    data = read(file)
    assert data["max_steps"] == 200
    assert data["deployment"] == {"num_train_gpus": 4, "num_infer_gpus": 4}
    lora = dig(data, "trainer.model.lora")
    assert (lora["rank"], lora["alpha"]) == (32, 64)
    assert lora["target_modules"] == [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    assert data["orchestrator"]["batch_size"] >= 32
    assert data["orchestrator"]["group_size"] == 4
    assert "skip_first_step" not in data["orchestrator"]["eval"], "evaluated before training, too"
    tasks = {source["name"]: source["env"]["taskset"] for _, source in sources(file)}
    sizes = {name: (task["source"], task["unit"], task["sizes"]) for name, task in tasks.items()}
    assert sizes == {
        "spam": ("spam", "tokens", [32_768, 49_152, 65_536]),
        "trec-131k": ("trec_coarse", "tokens", [131_072]),
        "spam-131k": ("spam", "tokens", [131_072]),
    }


def test_the_small_runs_need_the_stated_number_of_gpus() -> None:
    for stem, gpus in (("oolong-smoke", 1), ("oolong-qwen3-4b", 2), ("oolong-qwen3-8b", 4)):
        data = read(CONFIGS / "rl" / f"{stem}.toml")
        deployment = data.get("deployment", {})
        serving = deployment.get("num_infer_gpus", 1) if "inference" in data else 0
        assert deployment.get("num_train_gpus", 1) + serving == gpus


def test_env_servers_and_the_evaluation_agree() -> None:
    evals = [source for _, source in sources(CONFIGS / "eval" / "prime-rl-evals.toml")]
    [(_, server)] = sources(CONFIGS / "eval" / "prime-rl-env-server.toml")
    assert len({source["serve"]["address"] for source in evals}) == len(evals) == 2
    for first, second in pairwise(source["env"]["taskset"] for source in evals):
        assert {**first, "seed": 0} == {**second, "seed": 0}
        assert first["seed"] != second["seed"]
    assert {source["env"]["taskset"]["id"] for source in evals} == {server["env"]["taskset"]["id"]}


def test_the_class_of_a_block_is_found_by_its_id() -> None:
    """A wrong key in an environment, which the schema leaves open, is refused."""
    block = {"taskset": {"id": "oolong", "sise": 3}}
    with pytest.raises(ValueError, match="sise"):
        environment(block)
    assert issubclass(OolongConfig, vf.TasksetConfig)
