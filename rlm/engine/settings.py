"""What one run is made with."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlm.engine import prompts
from rlm.engine.callbacks import Callbacks
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.tools import Toolbox


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a run of a kind has: the root's, or those below it."""

    system_prompt: str
    tools: Toolbox

    @classmethod
    def of(cls, system_prompt: str, tools: Toolbox) -> RunSetup:
        """With the tools listed at the end of the system prompt."""
        listed = tools.describe()
        return cls(f"{system_prompt}\n\n{prompts.tools(listed)}" if listed else system_prompt, tools)


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """What holds for every run of a tree."""

    max_depth: int
    max_iterations: int
    max_errors: int | None
    max_concurrent_subcalls: int
    """Child runs of one run at once."""
    max_concurrent_queries: int
    """Plain sub-calls of the whole tree at once."""
    root: RunSetup
    below: RunSetup
    prologue: str | None
    session: REPLSettings
    compaction: float | None = None
    """The part of a model's window at which the history is compacted; None: never."""
    callbacks: Callbacks = field(default_factory=Callbacks)
