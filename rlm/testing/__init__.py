"""Models that follow a script: serve any policy as a model, in process (`ScriptedClient`) or over HTTP (`ModelServer`,
`serve`, `python -m rlm.testing module:policy`).

A policy is a function of a chat request. It is no language model, and the server says so; it knows no task either: what
to answer is wholly the policy's.

    def policy(request: ChatRequest) -> str:
        return "It is " + request.text.upper()

    with serve(policy) as server:
        RLM(backend="vllm", backend_kwargs={"model_name": server.model, "base_url": server.base_url})

Both ways count tokens alike and by rule (`rlm.testing.tokens`), so a run gives the same figures each time.
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
