"""The settings of the runs of a call tree."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlm.engine import prompts
from rlm.engine.callbacks import Callbacks
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.tools import Toolbox


@dataclass(frozen=True, slots=True)
class RunSetup:
    """System prompt and tools: the root's, or those of the child runs."""

    system_prompt: str
    tools: Toolbox

    @classmethod
    def of(cls, system_prompt: str, tools: Toolbox) -> RunSetup:
        """Lists the tools at the end of the system prompt."""
        listed = tools.describe()
        return cls(f"{system_prompt}\n\n{prompts.tools(listed)}" if listed else system_prompt, tools)


@dataclass(frozen=True, slots=True)
class TreeSettings:
    """The settings of every run of a call tree. `rlm.Options` explains them."""

    max_depth: int
    max_iterations: int
    max_errors: int | None
    max_concurrent_subcalls: int
    """Child runs of one run in flight at once."""
    max_concurrent_queries: int
    """Plain sub-calls of the whole tree in flight at once."""
    root: RunSetup
    below: RunSetup
    prologue: str | None
    repl: REPLSettings
    """The settings of a REPL that several completions share."""
    repl_of_one_run: REPLSettings
    """The settings of a REPL that ends with its run. A cell that is stopped gets less time, because nothing follows it."""
    compaction: float | None = None
    """Part of a model's window at which the history is compacted; None: never."""
    callbacks: Callbacks = field(default_factory=Callbacks)
