"""The layout holds: imports only go down, there are no circles, and a name stands for one thing.

`docs/architecture.md` says what each package is. Imports inside functions and under TYPE_CHECKING count like all others.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"rlm": ROOT, "rlm_train": ROOT / "training", "oolong": ROOT / "environments" / "oolong"}

FLOORS = """
    oolong
    rlm_train
    rlm.__main__
    rlm.cli
    rlm
    rlm.replay
    rlm.rlm
    rlm.batch
    rlm.engine
    rlm.options
    rlm.console
    rlm.logger
    rlm.environments
    rlm.testing
    rlm.repl
    rlm.clients
    rlm.repl.worker
    rlm.repl.worker.control
    rlm.repl.worker.sandbox
    rlm.repl.worker.process
    rlm.repl.worker.protocol
    rlm.context
    rlm.events
    rlm.aio rlm._checks rlm._keywords rlm._redaction rlm._registry
    rlm.cancellation
    rlm.errors
    rlm.types
    rlm._wording
"""
"""From the top down. A package imports only what stands on a lower floor. A package that has packages listed here is the rest
of it."""

TWO_ENDS = {"checkpoint", "fork_server", "quickstart", "relay", "tools"}
"""Modules whose name stands twice: the two ends of one thing, or, for quickstart, what is general and what is OOLONG's."""
TWO_CLASSES = {"ForkServer", "Reply", "ToolError"}
"""Classes whose name stands twice: the two ends of one thing. Reply is an event, and a scripted reply in `rlm.testing`;
both are public."""


def _modules() -> dict[str, Path]:
    found = {}
    for name, folder in SOURCES.items():
        for file in (folder / name).rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def _imported(name: str) -> Iterator[str]:
    """The full names of what a module imports, wherever in it that stands."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source


IMPORTS = {name: set(_imported(name)) for name in MODULES}


def _floors() -> dict[str, int]:
    lines = FLOORS.strip().splitlines()
    return {package: number for number, line in enumerate(reversed(lines)) for package in line.split()}


FLOOR_OF = _floors()


def _package(name: str) -> str:
    """The package of `FLOORS` in which a module is."""
    while name not in FLOOR_OF:
        name = name.rpartition(".")[0]
        assert name, "each module is in a package of FLOORS"
    return name


def test_each_package_of_the_floors_exists() -> None:
    assert set(FLOOR_OF) == {_package(name) for name in MODULES}


def test_imports_only_go_down() -> None:
    upward = [
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        for target in sorted(targets & set(MODULES))
        if _package(name) != _package(target) and FLOOR_OF[_package(target)] >= FLOOR_OF[_package(name)]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A package's own __init__ hands names on, and each of its modules may be imported through it.
    graph = {
        name: {target for target in targets & set(MODULES) if target != name}
        for name, targets in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("heavy", ["verifiers", "torch"])
def test_the_engine_imports_no_training_library(heavy: str) -> None:
    users = [name for name, targets in IMPORTS.items() if any(t.split(".")[0] == heavy for t in targets)]
    assert not [name for name in users if name.split(".")[0] == "rlm"]


def test_the_worker_imports_the_standard_library_alone() -> None:
    worker = "rlm.repl.worker"
    foreign = {
        f"{name} imports {target}"
        for name, targets in IMPORTS.items()
        if name == worker or name.startswith(worker + ".")
        for target in targets
        if not (target == worker or target.startswith(worker + "."))
        if target.split(".")[0] not in sys.stdlib_module_names
    }
    # Where a context is a table, the code has to have the library of tables.
    assert foreign == {f"{worker}.process.contexts imports {library}" for library in ("pyarrow",)}


def test_a_module_name_stands_for_one_thing() -> None:
    places = defaultdict(list)
    for name, file in MODULES.items():
        if not file.name.startswith("__"):
            places[file.stem].append(name)
    assert {stem: found for stem, found in places.items() if len(found) > 1 and stem not in TWO_ENDS} == {}


def test_a_class_name_stands_for_one_thing() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name)
    assert {cls: found for cls, found in places.items() if len(found) > 1 and cls not in TWO_CLASSES} == {}


def test_what_is_flat_and_public_is_listed() -> None:
    flat = {file.stem for file in (ROOT / "rlm").glob("*.py") if not file.stem.startswith("_")}
    assert flat == {"cancellation", "errors", "events", "options", "replay", "rlm", "types"}
