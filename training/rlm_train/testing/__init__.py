"""What stands in for vLLM when training is tested: a server of scripted models that speaks its training endpoints.

    folder = build_tokenizer(tmp_path)
    async with InferenceServer(policy, folder) as server:
        ...  # verifiers' training client, or prime-rl's orchestrator, against server.base_url
    generations_of(sample.token_ids, sample.mask, sample.logprobs, server.generations)

Needs verifiers (for its renderers) and transformers, which come with it.
"""

from rlm_train.testing.samples import Generation, SampleMismatchError, generations_of
from rlm_train.testing.server import Call, InferenceServer
from rlm_train.testing.tokenizer import build_tokenizer

__all__ = [
    "Call",
    "Generation",
    "InferenceServer",
    "SampleMismatchError",
    "build_tokenizer",
    "generations_of",
]
