"""OOLONG as a verifiers environment for recursive language models.

`__all__` names one taskset and one harness, so that the id `oolong` alone is a complete environment:
`vf-eval oolong ...`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oolong.taskset import OolongTaskset as OolongTaskset
    from rlm_train.harness import RLMHarness as RLMHarness

__all__ = ["OolongTaskset", "RLMHarness"]

_MODULES = {"OolongTaskset": "oolong.taskset", "RLMHarness": "rlm_train.harness"}


def __getattr__(name: str) -> Any:
    # verifiers takes seconds to import, and generators, scorers and the reference policy do not need it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
