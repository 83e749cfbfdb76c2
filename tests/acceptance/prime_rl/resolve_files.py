"""Launch files, as prime-rl's own classes read them. Runs in a prime-rl environment. For each argument
`command=file` it prints a line of JSON with the resulting settings, and the keys of the file that repeat a default."""

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
    """The places of the values in a file. A list of plain values is one value."""
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
        data["run"] = {"name": "run"}  # else the name is random
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
                pass  # the value is required
        print(json.dumps({"file": file, "resolved": resolved, "repeated": repeated}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
