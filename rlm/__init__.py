"""Recursive language models: answer questions about inputs far longer than a model's window.

    from rlm import RLM

The input becomes a variable in a Python REPL; the root model writes code to look at it and calls sub-models on pieces.
"""

from rlm.context import Context
from rlm.errors import (
    AuthenticationError,
    BadReplyError,
    BudgetExceededError,
    CancellationError,
    ConfigError,
    ContextError,
    ContextLengthError,
    ErrorThresholdExceededError,
    LimitError,
    ModelError,
    ModelNotFoundError,
    ModelTimeoutError,
    ModelUnavailableError,
    REPLError,
    RLMError,
    RolloutStoppedError,
    TimeoutExceededError,
    TokenLimitExceededError,
)
from rlm.rlm import RLM
from rlm.types import RLMChatCompletion, StopReason, UsageSummary

__all__ = [
    "RLM",
    "AuthenticationError",
    "BadReplyError",
    "BudgetExceededError",
    "CancellationError",
    "ConfigError",
    "Context",
    "ContextError",
    "ContextLengthError",
    "ErrorThresholdExceededError",
    "LimitError",
    "ModelError",
    "ModelNotFoundError",
    "ModelTimeoutError",
    "ModelUnavailableError",
    "REPLError",
    "RLMChatCompletion",
    "RLMError",
    "RolloutStoppedError",
    "StopReason",
    "TimeoutExceededError",
    "TokenLimitExceededError",
    "UsageSummary",
]
