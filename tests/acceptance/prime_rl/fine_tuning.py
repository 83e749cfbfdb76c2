"""Prints what prime-rl's fine-tuning trains on: `python fine_tuning.py FILE TOKENIZER`, in prime-rl's environment.

FILE is a launch file whose data are there; TOKENIZER a folder that stands in for the model's. Prints, for every row of the
training and of the validation data, its tokens as text, and the parts of them that the loss is on.
"""

from __future__ import annotations

import itertools
import json
import sys
import tomllib
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any


def rows(config: Any, settings: Any, tokenizer: Any) -> list[dict[str, Any]]:
    data = import_module("prime_rl.trainer.sft.data")
    dataset = data.SFTDataset(
        data.load_sft_dataset(settings),
        import_module("renderers").create_renderer(tokenizer, config.renderer),
        shuffle=False,
        seq_len=settings.seq_len,
        loss_mask_config=settings.loss_mask,
        max_epochs=1,
    )
    return [
        {
            "text": tokenizer.decode(row["input_ids"]),
            "trained": [
                tokenizer.decode([token for token, _ in run])
                for on, run in itertools.groupby(
                    zip(row["target_ids"], row["loss_mask"], strict=True), key=lambda pair: pair[1]
                )
                if on
            ],
        }
        for row in dataset
    ]


def main() -> None:
    # Environments without CUDA lack torchdata, whose loader is not used here.
    if util.find_spec("torchdata") is None:
        loader = ModuleType("torchdata.stateful_dataloader")
        loader.__dict__["StatefulDataLoader"] = None
        sys.modules.update({"torchdata": ModuleType("torchdata"), loader.__name__: loader})
    file, folder = sys.argv[1:]
    settings = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    config = import_module("prime_rl.configs.sft").SFTConfig.model_validate(settings)
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(folder)
    found = {
        "train": rows(config, config.data, tokenizer),
        "validation": rows(config, config.val.data, tokenizer),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
