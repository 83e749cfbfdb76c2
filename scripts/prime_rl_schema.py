"""Prints the JSON schema of prime-rl's launch files, for tests without prime-rl. Run it in an environment with prime-rl:

    PYTHON_OF_PRIME_RL scripts/prime_rl_schema.py > tests/configs/prime_rl.schema.json

The schema has no descriptions and titles. Its `env` blocks are those of verifiers' base class: the id in a block, which is
looked up later, decides its class.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

COMMANDS = {
    "rl": ("prime_rl.configs.rl", "RLConfig"),
    "sft": ("prime_rl.configs.sft", "SFTConfig"),
    "evals": ("prime_rl.configs.evals", "EvalsConfig"),
    "env-server": ("prime_rl.configs.env_server", "EnvServerConfig"),
    "inference": ("prime_rl.configs.inference", "InferenceConfig"),
}
"""prime-rl's commands, with module and class of their launch files."""


def bare(schema: Any) -> Any:
    """The schema without descriptions and titles."""
    if isinstance(schema, dict):
        words = ("description", "title")
        return {
            name: bare(value)
            for name, value in schema.items()
            if not (name in words and isinstance(value, str))
        }
    return [bare(item) for item in schema] if isinstance(schema, list) else schema


def main() -> int:
    from pydantic.json_schema import models_json_schema

    classes = {
        command: getattr(importlib.import_module(module), name)
        for command, (module, name) in COMMANDS.items()
    }
    references, definitions = models_json_schema([(config, "validation") for config in classes.values()])
    schema = {
        "commands": {command: references[config, "validation"] for command, config in classes.items()},
        **bare(definitions),
    }
    json.dump(schema, sys.stdout, separators=(",", ":"), sort_keys=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
