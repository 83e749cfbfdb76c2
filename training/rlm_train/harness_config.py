"""The settings of the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import verifiers.v1 as vf
from pydantic import Field, field_validator, model_validator

from rlm_train.context_cache import DEFAULT_CAPACITY


class RLMHarnessConfig(vf.HarnessConfig):
    """Settings of the RLM of an agent."""

    max_iterations: int = Field(default=30, ge=1)
    """Most turns of the root model. After them it is asked once more, only for its answer."""
    max_depth: int = Field(default=1, ge=1)
    """Levels of runs with a REPL. 1: `rlm_query` is a plain model call. 2: it is a child run with a REPL of its own."""
    max_concurrent_subcalls: int = Field(default=16, ge=1)
    """Most sub-calls of one rollout in flight at once."""
    cell_timeout: float = Field(default=300.0, gt=0)
    """Most seconds for one cell, its sub-calls included."""
    isolation: Literal["sandbox", "sandbox!", "process"] = "sandbox"
    """Isolation of the policy's code from this machine: see `rlm.environments.local.LocalEnvironment`. Where the kernel allows
    no sandbox, "sandbox!" fails, and "sandbox" warns and runs without one."""
    readable: list[Path] = Field(default_factory=list)
    """More files and folders that the code can read in the sandbox, at the same paths."""
    hidden: list[str] = Field(default_factory=list)
    """More installed packages that the code cannot import in the sandbox. Packages that require verifiers are always hidden."""
    checkpoint_bytes: int = Field(default=256 << 20, ge=0)
    """Bytes of memory up to which a REPL gets checkpoints between turns. With a checkpoint, a killed cell loses only its own
    assignments. A checkpoint costs a fork per turn and about 1 MB per REPL. 0: no checkpoints."""
    max_timeout: float | None = Field(default=None, gt=0)
    """Most seconds for a rollout, which then ends with the best answer so far. A shorter `timeout.rollout` of the agent also
    holds, less a few seconds to finish."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Most input and output tokens of a rollout, sub-calls and child runs included."""
    max_errors: int | None = Field(default=None, ge=1)
    """Number of failed cells in a row that ends the rollout."""
    system_prompt: Path | None = None
    """File with a text that replaces the engine's system prompt."""
    train_subcalls: str | float = "mask"
    """What a trainer does with the tokens of sub-calls and child runs. "mask": they stay in the trace and are not trained.
    "train": they get the root's advantage. A number above 0 and up to 1: they get the root's advantage with that weight.
    "direct": the calls go straight to the model server and are not in the trace; `trace.info` has their sums. This is much
    faster for many calls. The agent's own limits (`max_turns`, ...) then count only the root, `max_tokens` here counts all."""
    log_dir: Path | None = None
    """Folder for one event log per rollout, named by the trace's id. No log is written if unset."""
    settle_collector: bool = True
    """Excludes the objects that exist at the first rollout from Python's garbage collection, and makes collections rarer. A
    full collection would stop all rollouts of a worker for a good part of a second, again and again."""
    context_cache_bytes: int = Field(default=DEFAULT_CAPACITY, ge=0)
    """Most bytes of contexts that a worker process keeps for later rollouts of the same examples."""

    @field_validator("train_subcalls")
    @classmethod
    def _check_train_subcalls(cls, value: str | float) -> str | float:
        if value in ("mask", "train", "direct"):
            return value
        try:
            weight = float(value)
        except ValueError:
            raise ValueError(
                f'train_subcalls must be "mask", "train", "direct" or a weight, not {value!r}'
            ) from None
        if weight == 0:
            # A trainer takes all-zero weights for missing ones, which count as weight 1.
            raise ValueError('a weight of 0 has no effect in the trainer: use train_subcalls = "mask"')
        if not 0 < weight <= 1:
            raise ValueError(f"the weight of train_subcalls must be in (0, 1], not {weight:g}")
        return weight

    @model_validator(mode="after")
    def _check_sandbox_settings(self) -> RLMHarnessConfig:
        if self.isolation == "process" and (self.readable or self.hidden):
            raise ValueError('readable and hidden are settings of a sandbox, but isolation is "process"')
        return self

    @model_validator(mode="after")
    def _check_program_settings(self) -> RLMHarnessConfig:
        """Refuses settings for a program in a container, which would have no effect."""
        for name in ("env", "forward_env", "disabled_tools", "skills", "mcp_header_env"):
            if getattr(self, name, None):
                raise ValueError(f"{name} has no effect; remove it: the RLM runs in the worker's process")
        return self
