"""The results of an evaluation as a table: `python -m rlm_train.report outputs/<run>`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from rlm_train.rollout_info import INFO_KEY, RolloutInfo

TRACES_FILE = "traces.jsonl"


@dataclass(frozen=True, slots=True)
class RolloutFigures:
    """The figures of one rollout. Figures that the trace does not have are None."""

    group: str
    model: str
    ok: bool
    """Whether the rollout was scored."""
    reward: float | None
    seconds: float
    """Duration of the agent's part, in seconds."""
    turns: float | None
    subcalls: float | None
    root_tokens: float | None
    sub_tokens: float | None
    failure: str | None
    """The failure, as `place: type: message`."""


@dataclass(slots=True)
class Run:
    """The rollouts of a `traces.jsonl`."""

    path: Path
    rollouts: list[RolloutFigures] = field(default_factory=list)
    torn_lines: int = 0
    """Lines that could not be read. A run that was killed often leaves its last line incomplete."""

    @property
    def models(self) -> list[str]:
        return sorted({rollout.model for rollout in self.rollouts})


def read_run(path: Path, *, by: str = "category") -> Run:
    """Reads the rollouts of an evaluation, as verifiers 0.3 and 0.4 write them.

    Args:
        path: the run's folder, or its `traces.jsonl`.
        by: name of the field of the task data that groups rollouts.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file holds no rollout.
    """
    file = path / TRACES_FILE if path.is_dir() else path
    run = Run(file)
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                episode = json.loads(line)
                run.rollouts.extend(_rollout(trace, by) for trace in episode["traces"])
            except (ValueError, KeyError, TypeError, AttributeError):
                run.torn_lines += 1
    if not run.rollouts:
        raise ValueError(f"{file} holds no rollout")
    return run


def _rollout(trace: dict[str, Any], by: str) -> RolloutFigures:
    metrics = trace.get("metrics") or {}
    info = RolloutInfo.from_dict((trace.get("info") or {}).get(INFO_KEY))
    rewards = [reward for reward in (trace.get("rewards") or {}).values() if reward]
    span = (trace.get("timing") or {}).get("agent") or {}
    models = {call["model"] for call in trace.get("calls") or () if call.get("model")}
    return RolloutFigures(
        group=str(trace["task"]["data"].get(by) or "-"),
        model=", ".join(sorted(models)) or trace["agent"]["config"].get("model") or "-",
        ok=bool(trace.get("ok")),
        reward=sum(reward["score"] * reward.get("weight", 1.0) for reward in rewards) if rewards else None,
        seconds=max(0.0, span.get("end", 0.0) - span.get("start", 0.0)),
        turns=metrics.get("turns"),
        subcalls=metrics.get("subcalls"),
        root_tokens=_sum(metrics, "root_input_tokens", "root_output_tokens"),
        sub_tokens=_sum(metrics, "sub_input_tokens", "sub_output_tokens"),
        failure=_failure(trace, info),
    )


def _failure(trace: dict[str, Any], info: RolloutInfo) -> str | None:
    if failure := info.failure:
        return f"{failure.where}: {failure.type}: {failure.message}"
    if not trace.get("ok") and trace.get("errors"):
        error = trace["errors"][-1]
        return f"{error['type']}: {error['message']}"
    return None


def _sum(metrics: dict[str, Any], *names: str) -> float | None:
    values = [metrics.get(name) for name in names]
    return None if None in values else float(sum(value for value in values if value is not None))


def table(run: Run, *, title: str | None = None, caption: str | None = None) -> Table:
    """Makes a table of means over the rollouts: a row for each group, and one for all.

    A rollout that was not scored counts with a reward of 0, as in verifiers' overall figure.
    """
    result = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    result.add_column("type", min_width=20)
    for name in ("n", "reward", "turns", "sub-calls", "root tok", "sub tok", "sec", "failed"):
        result.add_column(name, justify="right", no_wrap=True)
    for group in sorted({rollout.group for rollout in run.rollouts}):
        result.add_row(group, *_cells([r for r in run.rollouts if r.group == group]))
    result.add_section()
    result.add_row("all", *_cells(run.rollouts), style="bold")
    return result


def _cells(rollouts: Sequence[RolloutFigures]) -> Iterator[str]:
    yield str(len(rollouts))
    yield f"{sum(rollout.reward or 0.0 for rollout in rollouts) / len(rollouts):.3f}"
    yield _mean([rollout.turns for rollout in rollouts], "{:.1f}")
    yield _mean([rollout.subcalls for rollout in rollouts], "{:.1f}")
    yield _mean([rollout.root_tokens for rollout in rollouts], "{:,.0f}")
    yield _mean([rollout.sub_tokens for rollout in rollouts], "{:,.0f}")
    yield _mean([rollout.seconds for rollout in rollouts], "{:.1f}")
    yield str(sum(rollout.failure is not None or not rollout.ok for rollout in rollouts))


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(sum(known) / len(known)) if known else "-"


def render(run: Run, console: Console, *, note: str | None = None) -> None:
    """Prints the table, the failures, and the path of the trajectories.

    Args:
        run: the evaluation.
        console: where it is printed.
        note: warning about the model, printed above the table.
    """
    title = f"model: {', '.join(run.models)}"
    if note:
        title += f"\n{note}"
    console.print(
        table(run, title=title, caption="means over the rollouts; tokens are input and output together")
    )
    failures: dict[str, int] = {}
    for rollout in run.rollouts:
        if rollout.failure is not None:
            failures[rollout.failure] = failures.get(rollout.failure, 0) + 1
    for text, count in failures.items():
        console.print(f"failed {count}x: {text[:500]}", style="red", markup=False, highlight=False)
    if run.torn_lines:
        console.print(f"{run.torn_lines} line(s) of the file could not be read", style="yellow")
    console.print(f"trajectories: {run.path}", markup=False, highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlm_train.report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or its traces.jsonl")
    parser.add_argument(
        "--by", default="category", help="field of the task data to group by (default: category)"
    )
    arguments = parser.parse_args(argv)
    try:
        run = read_run(arguments.run, by=arguments.by)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    render(run, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
