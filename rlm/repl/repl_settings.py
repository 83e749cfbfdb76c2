"""The settings of a REPL: the entries of `environment_kwargs` that every place understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlm._checks import is_number
from rlm._wording import a
from rlm.errors import ConfigError

DEFAULT_LIMITS: Mapping[str, int] = {
    "memory_bytes": 4 << 30,
    "cpu_seconds": 3600,
    "file_bytes": 1 << 30,
    "open_files": 1024,
}
"""The resource limits of a worker where `REPLSettings.limits` does not override them. Each one holds for one process.
`memory_bytes` and a quarter more is also the limit on all processes of a REPL together."""

_MOST = 1 << 62
"""The largest limit that the kernel accepts."""
_LEAST_OUTPUT = 100
"""The smallest `max_output_chars`. The line that says how much was left out needs this room."""


@dataclass(frozen=True, slots=True)
class REPLSettings:
    """The settings of a REPL. Each field is a key of `RLM(environment_kwargs={...})`.

    Raises:
        ConfigError: a value does not fit; the message names the field.
    """

    cell_timeout: float | None = 300.0
    """Seconds that a cell may take, sub-calls included. None: no limit."""
    interrupt_grace: float = 2.0
    """Seconds between the interrupt of a cell and the kill of its process tree."""
    stop_grace: float | None = None
    """Seconds between the interrupt and the kill when a limit of the run, or the run's caller, stops a cell.
    None: 0.08 in a run with a REPL of its own, which nothing uses afterwards; otherwise `interrupt_grace`."""
    max_output_chars: int = 20_000
    """Characters that are kept of a cell's stdout, and of its stderr: head and tail. At least 100."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Overrides of resource limits, by name. The limits are `memory_bytes` (bytes), `cpu_seconds` (seconds), `file_bytes`
    (bytes) and `open_files` (descriptors). `DEFAULT_LIMITS` has their defaults."""
    checkpoint_bytes: int = 256 << 20
    """Bytes of memory up to which a worker gets checkpoints. With a checkpoint, a cell that is killed, or that ends its
    worker, loses only its own changes to the namespace. 0: no checkpoints."""
    checkpoint_after: float = 0.5
    """Seconds without work after which a checkpoint is made: while a model thinks, not between cells that follow each other.
    If ten times the duration of the last checkpoint is longer, the worker waits that long. 0: a checkpoint is made after
    each cell, and the next cell waits for it."""
    seed: int | None = None
    """Seeds `random`, and numpy once it is imported. None: no seed. The hash seed is always fixed."""

    def __post_init__(self) -> None:
        if not isinstance(self.limits, Mapping):
            raise ConfigError(f"limits must be a dict of names and numbers, and is {a(self.limits)}")
        for name, value in self.limits.items():
            if name not in DEFAULT_LIMITS:
                raise ConfigError(f"there is no limit {name!r}; there are {', '.join(DEFAULT_LIMITS)}")
            if type(value) is not int or not 0 < value < _MOST:
                raise ConfigError(f"the limit {name} must be a positive whole number, not {value!r}")
        for name, optional in (("cell_timeout", True), ("interrupt_grace", False), ("stop_grace", True)):
            seconds = getattr(self, name)
            if not (seconds is None and optional) and not (is_number(seconds) and seconds > 0):
                raise ConfigError(f"{name} must be a positive number of seconds, not {seconds!r}")
        if type(self.checkpoint_bytes) is not int or self.checkpoint_bytes < 0:
            raise ConfigError(
                "checkpoint_bytes must be a whole number of bytes, 0 for no checkpoints, "
                f"not {self.checkpoint_bytes!r}"
            )
        if not (is_number(self.checkpoint_after) and self.checkpoint_after >= 0):
            raise ConfigError(f"checkpoint_after must be a number of seconds, not {self.checkpoint_after!r}")
        if type(self.max_output_chars) is not int or self.max_output_chars < _LEAST_OUTPUT:
            raise ConfigError(
                f"max_output_chars must be a whole number, at least {_LEAST_OUTPUT}, not {self.max_output_chars!r}"
            )
        if self.seed is not None and type(self.seed) is not int:
            raise ConfigError(f"seed must be a whole number or None, not {self.seed!r}")

    @property
    def all_limits(self) -> dict[str, int]:
        """The resource limits of a worker by name, defaults included."""
        return {**DEFAULT_LIMITS, **self.limits}

    @property
    def grace_of_stop(self) -> float:
        """Seconds between the interrupt and the kill when the caller stops a cell."""
        return self.interrupt_grace if self.stop_grace is None else self.stop_grace

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, by name."""
        default = REPLSettings()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(default, name)}

    def for_supervisor(self) -> dict[str, int]:
        """The settings for the supervisor: "max_output", characters that it keeps of each stream, and "memory", bytes that all
        processes of the REPL may have together. "memory" is a quarter more than one process may have: a process that takes
        too much gets a `MemoryError` before the whole REPL is killed."""
        memory = self.all_limits["memory_bytes"]
        return {"max_output": self.max_output_chars, "memory": memory + memory // 4}
