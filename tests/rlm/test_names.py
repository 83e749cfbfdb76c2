"""What `rlm` exports."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import rlm


def test_every_exported_name_is_there() -> None:
    for name in rlm.__all__:
        assert getattr(rlm, name).__name__ == name
    assert set(rlm.__all__) <= set(dir(rlm))


def test_the_exported_names_are_these() -> None:
    """A name that goes away breaks programs: it takes a change here to do that."""
    assert set(rlm.__all__) == {
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
        "RLM",
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
    }


def test_all_errors_are_exported() -> None:
    errors = importlib.import_module("rlm.errors")
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RLMError)
    }
    assert kinds <= set(rlm.__all__)


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RML'"):
        rlm.RML  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_alone_imports_nothing_of_it() -> None:
    code = "import sys, rlm; print([name for name in sys.modules if name.startswith(('rlm.', 'aiohttp', 'asyncio'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"
