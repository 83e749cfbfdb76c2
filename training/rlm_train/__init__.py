"""The RLM engine inside verifiers: rollouts that can be evaluated and trained on.

`RLMHarness` is the one harness that `__all__` names, so `rlm-train` is a harness id for any taskset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm_train.harness import RLMHarness as RLMHarness
    from rlm_train.harness import RLMHarnessConfig as RLMHarnessConfig
    from rlm_train.task import ContextTaskData as ContextTaskData

__all__ = ["ContextTaskData", "RLMHarness", "RLMHarnessConfig"]

_MODULES = {
    "ContextTaskData": "rlm_train.task",
    "RLMHarness": "rlm_train.harness",
    "RLMHarnessConfig": "rlm_train.harness",
}


def __getattr__(name: str) -> Any:
    # verifiers takes seconds to import, and `python -m rlm_train.report` does not need it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
