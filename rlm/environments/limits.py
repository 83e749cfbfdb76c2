"""What a worker may use."""

from __future__ import annotations

import math

from rlm.environments.base import SessionSpec
from rlm.errors import ConfigError

_NO_LIMIT = 1 << 62
"""The kernel takes no more for one."""
DEFAULT_LIMITS = {
    "memory_bytes": 4 << 30,
    "cpu_seconds": 3600,
    "file_bytes": 1 << 30,
    "open_files": 1024,
}
"""What a worker may use, if `SessionSpec.limits` says nothing else. Each holds for one process; that on memory, and a quarter
more, for all of a REPL together too."""


def of_all(spec: SessionSpec) -> dict[str, int]:
    """What a supervisor has to know: "max_output", characters, and "memory", bytes of all processes together. More than one may
    have, so that a program that takes too much is told so, and does not end."""
    memory = spec.limits.get("memory_bytes", DEFAULT_LIMITS["memory_bytes"])
    return {"max_output": spec.max_output_chars, "memory": memory + memory // 4}


def checked(spec: SessionSpec) -> dict[str, int]:
    """All limits of a worker.

    Raises:
        ConfigError: a limit or a time does not fit.
    """
    for name, value in spec.limits.items():
        if name not in DEFAULT_LIMITS:
            raise ConfigError(f"there is no limit {name!r}; there are {', '.join(DEFAULT_LIMITS)}")
        if type(value) is not int or not 0 < value < _NO_LIMIT:
            raise ConfigError(f"the limit {name} must be a positive whole number, not {value!r}")
    for name in ("cell_timeout", "interrupt_grace", "stop_grace"):
        seconds = getattr(spec, name)
        if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
            raise ConfigError(f"{name} must be a positive number of seconds, not {seconds!r}")
    if type(spec.checkpoint_bytes) is not int or spec.checkpoint_bytes < 0:
        raise ConfigError(
            f"checkpoint_bytes must be a whole number of bytes, 0 for no checkpoints, not {spec.checkpoint_bytes!r}"
        )
    if not (spec.checkpoint_after >= 0 and math.isfinite(spec.checkpoint_after)):
        raise ConfigError(f"checkpoint_after must be a number of seconds, not {spec.checkpoint_after!r}")
    if spec.max_output_chars < 100:
        raise ConfigError(f"max_output_chars must be at least 100, not {spec.max_output_chars!r}")
    return {**DEFAULT_LIMITS, **spec.limits}
