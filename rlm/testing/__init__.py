"""Scripted models: a policy is served as a model, in process (`ScriptedClient`) or over HTTP (`ModelServer`, `serve`,
`python -m rlm.testing module:policy`).

A policy is a function of a chat request. It is not a language model, and the server says so. This package knows no task: the
policy alone decides what to answer.

    def policy(request: ChatRequest) -> str:
        return "It is " + request.text.upper()

    with serve(policy) as server:
        RLM(backend="vllm", backend_kwargs={"model_name": server.model, "base_url": server.base_url})

Both count tokens by the same rule (`rlm.testing.tokens`), so a run gives the same figures each time.
"""

from rlm.testing.client import ScriptedClient
from rlm.testing.policy import (
    Answer,
    ChatRequest,
    Fault,
    Policy,
    Reply,
    Script,
    ScriptExhaustedError,
)
from rlm.testing.replies import FINISH, finish, repl_block
from rlm.testing.server import ModelServer, in_background, serve
from rlm.testing.tokens import count_tokens

__all__ = [
    "FINISH",
    "Answer",
    "ChatRequest",
    "Fault",
    "ModelServer",
    "Policy",
    "Reply",
    "Script",
    "ScriptExhaustedError",
    "ScriptedClient",
    "count_tokens",
    "finish",
    "in_background",
    "repl_block",
    "serve",
]
