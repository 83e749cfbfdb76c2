"""Recursive language models: answer questions about inputs far longer than a model's window.

    from rlm import RLM

The input becomes a variable in a Python REPL. The root model writes code that looks at it, and calls sub-models on pieces.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm.cancellation import CancelToken
    from rlm.context import Context
    from rlm.environments.isolation import IsolationWarning
    from rlm.errors import (
        AnswerFormatError,
        AuthenticationError,
        BadReplyError,
        BudgetExceededError,
        CancellationError,
        ConfigError,
        ContextError,
        ContextLengthError,
        ErrorThresholdExceededError,
        LimitError,
        LogError,
        ModelError,
        ModelNotFoundError,
        ModelTimeoutError,
        ModelUnavailableError,
        ReplayError,
        REPLError,
        RLMError,
        RolloutStoppedError,
        TimeoutExceededError,
        TokenLimitExceededError,
    )
    from rlm.logger import RLMLogger
    from rlm.options import Options
    from rlm.rlm import RLM
    from rlm.types import MapInput, MapItem, MapProgress, RLMChatCompletion, StopReason, Usage, UsageSummary

__all__ = [
    "RLM",
    "AnswerFormatError",
    "AuthenticationError",
    "BadReplyError",
    "BudgetExceededError",
    "CancelToken",
    "CancellationError",
    "ConfigError",
    "Context",
    "ContextError",
    "ContextLengthError",
    "ErrorThresholdExceededError",
    "IsolationWarning",
    "LimitError",
    "LogError",
    "MapInput",
    "MapItem",
    "MapProgress",
    "ModelError",
    "ModelNotFoundError",
    "ModelTimeoutError",
    "ModelUnavailableError",
    "Options",
    "REPLError",
    "RLMChatCompletion",
    "RLMError",
    "RLMLogger",
    "ReplayError",
    "RolloutStoppedError",
    "StopReason",
    "TimeoutExceededError",
    "TokenLimitExceededError",
    "Usage",
    "UsageSummary",
]

_HOMES = {
    "rlm.cancellation": ("CancelToken",),
    "rlm.context": ("Context",),
    "rlm.errors": (
        "AnswerFormatError",
        "AuthenticationError",
        "BadReplyError",
        "BudgetExceededError",
        "CancellationError",
        "ConfigError",
        "ContextError",
        "ContextLengthError",
        "ErrorThresholdExceededError",
        "LimitError",
        "LogError",
        "ModelError",
        "ModelNotFoundError",
        "ModelTimeoutError",
        "ModelUnavailableError",
        "REPLError",
        "RLMError",
        "ReplayError",
        "RolloutStoppedError",
        "TimeoutExceededError",
        "TokenLimitExceededError",
    ),
    "rlm.environments.isolation": ("IsolationWarning",),
    "rlm.logger": ("RLMLogger",),
    "rlm.options": ("Options",),
    "rlm.rlm": ("RLM",),
    "rlm.types": (
        "MapInput",
        "MapItem",
        "MapProgress",
        "RLMChatCompletion",
        "StopReason",
        "Usage",
        "UsageSummary",
    ),
}
"""The module of each exported name. It is imported on first use: `rlm --help` needs none of them."""

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(home), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
