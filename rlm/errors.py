"""The error model.

    RLMError
      ConfigError             an option that does not exist, does not fit, or is not built yet (a ValueError)
      ContextError            an input that cannot become a `context` (a TypeError)
      ModelError              a model call failed for good
        AuthenticationError     401, 403: the key
        ModelNotFoundError      404: the model or the URL
        ContextLengthError      the prompt is longer than the model's window
        BadReplyError           the server's answer is no chat completion
        RolloutStoppedError     a training endpoint ended the rollout: no call after it can succeed
        ModelTimeoutError       no reply in time
        ModelUnavailableError   connection refused or dropped, 408, 409, 429, 5xx, after all retries
        ReplayError             the log of a replay has no reply to this request
      LogError                a file is no event log, or no results file of a map (a ValueError)
      REPLError               the REPL could not be started, or ended and could not be replaced
      LimitError              a limit of the run was reached; the error carries the best answer so far
        TimeoutExceededError
        TokenLimitExceededError
        BudgetExceededError
        ErrorThresholdExceededError
        CancellationError
      AnswerFormatError       the answer does not have the form that `response_format` asks for

An error that ends a run carries `completion`: usage, messages and trajectory up to the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm.types import RLMChatCompletion


class RLMError(Exception):
    """Base of all errors that this package defines."""

    completion: RLMChatCompletion | None = None
    """The run up to the error; None if the error did not end a run."""

    @property
    def partial_answer(self) -> str | None:
        """The best answer so far; None if there is none."""
        if self.completion is None:
            return None
        return self.completion.response or None


class ConfigError(RLMError, ValueError):
    """An option that does not exist, does not fit, or is not built yet."""


class ContextError(RLMError, TypeError):
    """An input that cannot become a `context`."""


class ModelError(RLMError):
    """A model call failed for good."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; None if the server did not answer."""


class AuthenticationError(ModelError):
    """The server refused the API key."""


class ModelNotFoundError(ModelError):
    """The server does not have the model, or no model server is at the URL."""


class ContextLengthError(ModelError):
    """The prompt is longer than the model's window."""


class BadReplyError(ModelError):
    """The server's answer is no chat completion."""


class RolloutStoppedError(ModelError):
    """A training endpoint ended the rollout: no call after it can succeed."""


class ModelTimeoutError(ModelError):
    """No reply in time."""


class ModelUnavailableError(ModelError):
    """The server could not be reached or was overloaded, after all retries."""


class ReplayError(ModelError):
    """The log of a replay has no reply to this request."""


class LogError(RLMError, ValueError):
    """A file is no event log, or no results file of a map. The message names file and line."""


class REPLError(RLMError):
    """The REPL could not be started, or ended and could not be replaced."""


class LimitError(RLMError):
    """A limit of the run was reached."""


class TimeoutExceededError(LimitError):
    """`max_timeout` was reached. `elapsed` and `timeout` are seconds."""

    def __init__(self, elapsed: float, timeout: float) -> None:
        super().__init__(f"the run took {elapsed:.2f} s, and max_timeout is {timeout:g} s")
        self.elapsed = elapsed
        self.timeout = timeout


class TokenLimitExceededError(LimitError):
    """`max_tokens` was reached: input and output tokens of the whole call tree."""

    def __init__(self, tokens_used: int, token_limit: int, *, needed: int | None = None) -> None:
        """
        Args:
            needed: tokens of a prompt that no longer fits; None if the limit was reached by a reply.
        """
        text = f"the run used {tokens_used} tokens, and max_tokens is {token_limit}"
        super().__init__(text if needed is None else f"{text}; the next prompt has about {needed}")
        self.tokens_used = tokens_used
        self.token_limit = token_limit


class BudgetExceededError(LimitError):
    """`max_budget` was reached. `spent` and `budget` are USD."""

    def __init__(self, spent: float, budget: float, *, needed: float | None = None) -> None:
        """
        Args:
            needed: USD of a prompt that no longer fits; None if the limit was reached by a reply.
        """
        text = f"the run cost {spent:.4f} USD, and max_budget is {budget:.4f} USD"
        super().__init__(text if needed is None else f"{text}; the next prompt costs about {needed:.4f} USD")
        self.spent = spent
        self.budget = budget


class ErrorThresholdExceededError(LimitError):
    """`max_errors` cells in a row failed."""

    def __init__(self, error_count: int, threshold: int, last_error: str) -> None:
        super().__init__(f"{error_count} cells failed in a row (max_errors is {threshold}): {last_error}")
        self.error_count = error_count
        self.threshold = threshold
        self.last_error = last_error


class AnswerFormatError(RLMError):
    """The run ended with an answer that does not have the form that `response_format` asks for."""


class CancellationError(LimitError):
    """The run was cancelled by its caller."""

    def __init__(self, message: str = "the run was cancelled") -> None:
        super().__init__(message)
