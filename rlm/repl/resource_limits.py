"""What a worker may use."""

from __future__ import annotations

from collections.abc import Mapping

from rlm._wording import a
from rlm.context.plain_values import is_number
from rlm.errors import ConfigError
from rlm.repl.base import SessionSpec

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
        ConfigError: a limit, or another setting, does not fit.
    """
    if not isinstance(spec.limits, Mapping):
        raise ConfigError(f"limits must be a dict of names and numbers, and is {a(spec.limits)}")
    for name, value in spec.limits.items():
        if name not in DEFAULT_LIMITS:
            raise ConfigError(f"there is no limit {name!r}; there are {', '.join(DEFAULT_LIMITS)}")
        if type(value) is not int or not 0 < value < _NO_LIMIT:
            raise ConfigError(f"the limit {name} must be a positive whole number, not {value!r}")
    for name in ("cell_timeout", "interrupt_grace", "stop_grace"):
        seconds = getattr(spec, name)
        if seconds is None and name != "interrupt_grace":
            continue
        if not (is_number(seconds) and seconds > 0):
            raise ConfigError(f"{name} must be a positive number of seconds, not {seconds!r}")
    if type(spec.checkpoint_bytes) is not int or spec.checkpoint_bytes < 0:
        raise ConfigError(
            f"checkpoint_bytes must be a whole number of bytes, 0 for no checkpoints, not {spec.checkpoint_bytes!r}"
        )
    if not (is_number(spec.checkpoint_after) and spec.checkpoint_after >= 0):
        raise ConfigError(f"checkpoint_after must be a number of seconds, not {spec.checkpoint_after!r}")
    if type(spec.max_output_chars) is not int or spec.max_output_chars < 100:
        raise ConfigError(
            f"max_output_chars must be a whole number, at least 100, not {spec.max_output_chars!r}"
        )
    if spec.seed is not None and type(spec.seed) is not int:
        raise ConfigError(f"seed must be a whole number or None, not {spec.seed!r}")
    return {**DEFAULT_LIMITS, **spec.limits}
