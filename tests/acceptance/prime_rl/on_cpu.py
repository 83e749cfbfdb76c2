"""Starts a program of prime-rl on a machine without CUDA: `python on_cpu.py orchestrator @ file.json`.

Run by prime-rl's own Python. The program is the real one. Only modules of the trainer that load CUDA kernels are replaced. The
orchestrator imports them for one function and for a transport that it does not use here:

- `prime_rl.trainer.model`, for `setup_tokenizer`, which only needs transformers;
- the `__init__` of `prime_rl.transports.weights` and of its `nixl`, which load the trainer's side of every transport. The
  modules below them are prime-rl's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def leave_out_the_trainer() -> None:
    """Puts stand-ins into `sys.modules` before the real modules are imported."""
    model = ModuleType("prime_rl.trainer.model")
    model.__dict__["setup_tokenizer"] = _setup_tokenizer
    sys.modules[model.__name__] = model
    transports = importlib.import_module("prime_rl.transports")
    for name in ("prime_rl.transports.weights", "prime_rl.transports.weights.nixl"):
        package = ModuleType(name)
        folders = name.split(".")[2:]
        package.__path__ = [str(Path(path, *folders)) for path in transports.__path__]
        sys.modules[name] = package


def _setup_tokenizer(config: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.name, trust_remote_code=config.trust_remote_code)
    tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def main() -> None:
    _, program, *arguments = sys.argv
    leave_out_the_trainer()
    entrypoint = importlib.import_module(f"prime_rl.entrypoints.{program.replace('-', '_')}")
    sys.argv = [program, *arguments]
    entrypoint.main()


if __name__ == "__main__":
    main()
