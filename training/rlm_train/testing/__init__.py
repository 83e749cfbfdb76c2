"""Stand-in for vLLM in tests of training: a server of scripted models with the endpoints that training uses.

    folder = build_tokenizer(tmp_path)
    async with InferenceServer(policy, folder) as server:
        ...  # verifiers' training client, or prime-rl's orchestrator, against server.base_url
    generations_of(sample.token_ids, sample.mask, sample.logprobs, server.generations)

Needs verifiers, for its renderers, and transformers, which verifiers installs.
"""

from rlm_train.testing.inference_server import ControlCall, InferenceServer
from rlm_train.testing.samples import Generation, SampleMismatchError, generations_of
from rlm_train.testing.tokenizer import build_tokenizer

__all__ = [
    "ControlCall",
    "Generation",
    "InferenceServer",
    "SampleMismatchError",
    "build_tokenizer",
    "generations_of",
]
