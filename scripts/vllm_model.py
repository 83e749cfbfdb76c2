"""Writes a model's files in the form that vLLM loads. Runs in vLLM's virtual environment:

    python vllm_model.py hub REPOSITORY FOLDER     from the model's hub; continues an interrupted download
    python vllm_model.py convert FILE.gguf FOLDER  from a GGUF file, with weights dequantised to bfloat16

Exits with 3 if the hub cannot be reached.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HUB_UNREACHABLE = 3


def from_hub(repository: str, folder: Path) -> int:
    """Downloads weights, configuration and tokenizer of `repository` into `folder`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(
            repository,
            local_dir=folder,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*"],
        )
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return HUB_UNREACHABLE
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return 0


def convert(source: Path, folder: Path) -> int:
    """Writes the model and the tokenizer of the GGUF file `source` to `folder` as safetensors and JSON."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype="bfloat16", quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    if not tokenizer.chat_template:
        print(f"{source.name} has no chat template", file=sys.stderr)
        return 1
    tokenizer.save_pretrained(folder)
    return 0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["hub", repository, folder]:
            return from_hub(repository, Path(folder))
        case ["convert", source, folder]:
            return convert(Path(source), Path(folder))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
