"""The names that `rlm` exports."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import rlm


def test_every_exported_name_exists() -> None:
    for name in rlm.__all__:
        assert getattr(rlm, name).__name__ == name
    assert set(rlm.__all__) <= set(dir(rlm))


def test_the_exported_names_are_unchanged() -> None:
    """Removing a name breaks programs, so this test must be changed too."""
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


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RML'"):
        rlm.RML  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_none_of_its_modules() -> None:
    code = "import sys, rlm; print([name for name in sys.modules if name.startswith(('rlm.', 'aiohttp', 'asyncio'))])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "[]\n"
