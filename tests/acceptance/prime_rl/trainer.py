"""The part of prime-rl's trainer that its orchestrator sees: `python trainer.py RUN_FOLDER STEPS`.

Run by prime-rl's own Python, with its own receiver. It publishes the first weights, and then for every step takes the
batch, writes it down as `samples_<step>.json`, and publishes the next weights. It trains nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prime_rl.configs.shared import FileSystemTransportConfig  # type: ignore[import-not-found]
from prime_rl.transports.rollouts import setup_micro_batch_receiver  # type: ignore[import-not-found]
from prime_rl.utils.pathing import get_broadcast_dir, get_step_path  # type: ignore[import-not-found]

COLUMNS = {
    "token_ids": "input_ids",
    "mask": "loss_mask",
    "logprobs": "inference_logprobs",
    "advantages": "advantages",
    "rl_weights": "rl_weights",
    "temperatures": "temperatures",
    "env_names": "env_names",
}


def publish(run: Path, version: int) -> None:
    folder = get_step_path(get_broadcast_dir(run), version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "STABLE").touch()


def samples_of(micro_batch: Any) -> list[dict[str, Any]]:
    """Splits packed samples."""
    samples = []
    start = 0
    for length in micro_batch.seq_lens:
        columns = {name: getattr(micro_batch, field) for name, field in COLUMNS.items()}
        part = slice(start, start + length)
        samples.append({name: None if column is None else column[part] for name, column in columns.items()})
        start += length
    return samples


def main() -> None:
    run, steps = Path(sys.argv[1]), int(sys.argv[2])
    receiver = setup_micro_batch_receiver(run, 0, 1, FileSystemTransportConfig())
    publish(run, 0)
    for step in range(1, steps + 1):
        receiver.wait()
        samples = [sample for batch in receiver.receive() for sample in samples_of(batch)]
        (run / f"samples_{step}.json").write_text(json.dumps(samples))
        if step < steps:
            publish(run, step)


if __name__ == "__main__":
    main()
