"""A small tokenizer that needs no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlm.engine import prompts

# The tokens of Qwen3's chat template that its renderer looks up.
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

VOCABULARY = 1_500
"""Most tokens, not counting those of the chat template."""


def build_tokenizer(folder: Path) -> Path:
    """Makes a byte-level BPE tokenizer with the special tokens of Qwen3, trained on the engine's own prompt.

    It has no chat template: use it with the renderer "qwen3". It is the same each time, and takes well under a second.

    Args:
        folder: folder that the tokenizer is saved in; created if it does not exist.

    Returns:
        `folder`, which transformers and configurations take as the name of a model.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompts.system_prompt()], trainer)
    fast: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
    fast.add_tokens(list(_MARKUP))
    fast.save_pretrained(str(folder))
    return folder
