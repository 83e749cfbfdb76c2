"""Launch files, as prime-rl's own classes take them. Runs under the Python of a prime-rl environment: for each pair of
arguments, `command=file`, a line of JSON with the settings that the file comes to, and the keys in it that repeat a default."""

from __future__ import annotations

import copy
import importlib
import json
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLASSES = {
    "rl": ("prime_rl.configs.rl", "RLConfig"),
    "sft": ("prime_rl.configs.sft", "SFTConfig"),
    "evals": ("prime_rl.configs.evals", "EvalsConfig"),
    "env-server": ("prime_rl.configs.env_server", "EnvServerConfig"),
    "inference": ("prime_rl.configs.inference", "InferenceConfig"),
}

Place = tuple[str | int, ...]


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Where the values of a file stand. A list of plain values is one value."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*here, name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from places(item, (*here, number))
    else:
        yield here


def without(data: Any, place: Place) -> Any:
    """A copy of a file's data that lacks one value."""
    data = copy.deepcopy(data)
    holder = data
    for step in place[:-1]:
        holder = holder[step]
    del holder[place[-1]]
    return data


def resolve(config: Any, data: Any) -> Any:
    data = copy.deepcopy(data)
    if "run" in config.model_fields:
        data["run"] = {"name": "run"}  # it would be a random one
    return config.model_validate(data).model_dump(mode="json")


def main() -> int:
    warnings.simplefilter("ignore")
    for argument in sys.argv[1:]:
        command, _, file = argument.partition("=")
        module, name = CLASSES[command]
        config = getattr(importlib.import_module(module), name)
        data = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        resolved = resolve(config, data)
        repeated = []
        for place in places(data):
            try:
                if resolve(config, without(data, place)) == resolved:
                    repeated.append(".".join(map(str, place)))
            except ValueError:
                pass  # it has to be there
        print(json.dumps({"file": file, "resolved": resolved, "repeated": repeated}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
