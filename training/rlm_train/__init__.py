"""The RLM engine inside verifiers: rollouts that can be evaluated and trained on.

`__all__` names one harness, `RLMHarness`, and one environment, `RLMGroup`. So `rlm-train` is the id of both, for any taskset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlm_train.context_task import ContextTaskData as ContextTaskData
    from rlm_train.group import RLMGroup as RLMGroup
    from rlm_train.group import RLMGroupConfig as RLMGroupConfig
    from rlm_train.harness import RLMHarness as RLMHarness
    from rlm_train.harness_config import RLMHarnessConfig as RLMHarnessConfig
    from rlm_train.rewards import RLMTask as RLMTask
    from rlm_train.rewards import RLMTaskConfig as RLMTaskConfig

__all__ = [
    "ContextTaskData",
    "RLMGroup",
    "RLMGroupConfig",
    "RLMHarness",
    "RLMHarnessConfig",
    "RLMTask",
    "RLMTaskConfig",
]

_MODULES = {
    "ContextTaskData": "rlm_train.context_task",
    "RLMGroup": "rlm_train.group",
    "RLMGroupConfig": "rlm_train.group",
    "RLMHarness": "rlm_train.harness",
    "RLMHarnessConfig": "rlm_train.harness_config",
    "RLMTask": "rlm_train.rewards",
    "RLMTaskConfig": "rlm_train.rewards",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: verifiers takes seconds to import, and `python -m rlm_train.report` does not need it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
