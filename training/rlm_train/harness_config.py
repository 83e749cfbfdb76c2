"""The settings of the harness."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import verifiers.v1 as vf
from pydantic import Field, field_validator, model_validator

from rlm_train.context_cache import DEFAULT_CAPACITY

if TYPE_CHECKING:
    pass


class RLMHarnessConfig(vf.HarnessConfig):
    """Settings of the RLM that plays a seat."""

    max_iterations: int = Field(default=30, ge=1)
    """Turns of the root model. After them it is asked once more, for its answer alone."""
    max_depth: int = Field(default=1, ge=1)
    """1: `rlm_query` is a plain model call; 2: one level of child RLMs, each with a REPL of its own; and so on."""
    max_concurrent_subcalls: int = Field(default=16, ge=1)
    """Sub-calls of one rollout in flight at once."""
    cell_timeout: float = Field(default=300.0, gt=0)
    """Seconds that one cell may take, its sub-calls included."""
    isolation: Literal["sandbox", "sandbox!", "process"] = "sandbox"
    """What keeps the code of the policy from this machine: see `rlm.environments.local.LocalEnvironment`. "sandbox!" fails
    where there can be none; "sandbox" then warns, and goes on without."""
    readable: list[Path] = Field(default_factory=list)
    """In the sandbox, more files and folders that the code can read, at the same paths."""
    hidden: list[str] = Field(default_factory=list)
    """In the sandbox, more installed packages that the code cannot import. What requires verifiers is hidden anyway."""
    checkpoint_bytes: int = Field(default=256 << 20, ge=0)
    """Memory up to which the state of a REPL is kept while the model thinks, so that a cell that has to be killed loses no
    other: a fork a turn, and about 1 MB a REPL. 0: never."""
    max_timeout: float | None = Field(default=None, gt=0)
    """Seconds for a rollout. It ends with the best answer so far. A shorter `timeout.rollout` of the agent counts too,
    less a moment to finish in."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Input and output tokens of a rollout, sub-calls and child runs included."""
    max_errors: int | None = Field(default=None, ge=1)
    """Cells that may fail in a row."""
    system_prompt: Path | None = None
    """File whose text replaces the engine's system prompt."""
    train_subcalls: str | float = "mask"
    """What a trainer does with the tokens of sub-calls and child runs. "mask": nothing, they only stay in the trace.
    "train": they get the root's advantage. A number above 0, up to 1: the same, with that weight. "direct": they go
    straight to the model server and are in no trace, only summed up in `trace.info`. That is much faster where there are
    many; the agent's own limits (`max_turns`, ...) then see the root alone, and `max_tokens` here still counts all."""
    log_dir: Path | None = None
    """Folder for an event log of each rollout, named by the trace's id; none is written if unset."""
    settle_collector: bool = True
    """Has Python's garbage collector leave out, in this process, what was there before the first rollout, and look less
    often: it would stop all rollouts of a worker for a good part of a second, again and again."""
    context_cache_bytes: int = Field(default=DEFAULT_CAPACITY, ge=0)
    """Contexts that a worker process keeps for later rollouts of the same examples, in bytes."""

    @field_validator("train_subcalls")
    @classmethod
    def _check_train_subcalls(cls, value: str | float) -> str | float:
        if value in ("mask", "train", "direct"):
            return value
        try:
            weight = float(value)
        except ValueError:
            raise ValueError(
                f'train_subcalls is "mask", "train", "direct" or a weight, and not {value!r}'
            ) from None
        if weight == 0:
            # A stream of zeros would be taken for no stream at all, which is weight 1.
            raise ValueError('a weight of 0 has no effect in the trainer: use train_subcalls = "mask"')
        if not 0 < weight <= 1:
            raise ValueError(f"the weight of train_subcalls must be in (0, 1], and is {weight:g}")
        return weight

    @model_validator(mode="after")
    def _check_sandbox_settings(self) -> RLMHarnessConfig:
        if self.isolation == "process" and (self.readable or self.hidden):
            raise ValueError('readable and hidden are settings of a sandbox, and isolation is "process"')
        return self

    @model_validator(mode="after")
    def _check_program_settings(self) -> RLMHarnessConfig:
        """Settings for a program in a box would be without effect."""
        for name in ("env", "forward_env", "disabled_tools", "skills", "mcp_header_env"):
            if getattr(self, name, None):
                raise ValueError(f"{name} has no effect: the RLM runs in the worker and starts no program")
        return self
