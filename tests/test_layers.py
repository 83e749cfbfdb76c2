"""Imports only go down, and in no circle, and a name stands for one thing. The layers are the rows of the first table of
docs/architecture.md. Imports within functions and for type checkers count like all others."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = {"rlm": ROOT, "rlm_train": ROOT / "training", "oolong": ROOT / "environments" / "oolong"}
TABLE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## How a rollout flows")[0]
LAYERS = [re.findall(r"`([^`]+)`", row) for row in re.findall(r"^\| (`[^|]+) \|", TABLE, re.MULTILINE)]

TWO_MODULES = {"checkpoint", "fork_server", "quickstart", "relay", "tools"}
"""Modules whose name stands twice: the two ends of one thing, or what is general and what is OOLONG's (quickstart)."""
TWO_CLASSES = {"ForkServer", "Reply", "ToolError"}
"""Classes whose name stands twice: the two ends of one thing. Reply is an event, and a scripted reply in `rlm.testing`;
both are public."""

Imports = dict[str, set[str]]


def _modules() -> dict[str, Path]:
    found = {}
    for name, folder in SOURCES.items():
        for path in (folder / name).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def _imports(module: str) -> set[str]:
    """Full names of the modules that a module imports."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for statement in ast.walk(TREES[module]):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                above = package.split(".")[: len(package.split(".")) - statement.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in statement.names:
                name = f"{base}.{alias.name}"
                found.add(name if name in MODULES else base)
    return found


IMPORTS: Imports = {module: _imports(module) for module in MODULES}


def _layer(module: str) -> int:
    """The row of the table that has a module: of those that fit, the one that says most."""
    path = str(MODULES[module].relative_to(ROOT))
    fits = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if (path.startswith(name) if name.endswith("/") else Path(path).match(name))
    ]
    assert fits, f"docs/architecture.md has no row for {path}"
    return max(fits)[1]


def test_imports_only_go_down() -> None:
    entries = {"rlm", "rlm.__main__"}  # `rlm` exports from every layer, each name on first use
    layers = {module: _layer(module) for module in MODULES if module not in entries}
    layers["rlm"] = layers["rlm.rlm"]
    upward = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if name in layers and module not in entries and layers[module] > layers[name]
    ]
    assert upward == []


def test_no_imports_go_in_a_circle() -> None:
    graph = {
        module: {name for name in names if name in MODULES and name != "rlm"}
        for module, names in IMPORTS.items()
    }
    TopologicalSorter(graph).prepare()


def test_the_engine_imports_neither_verifiers_nor_torch() -> None:
    foreign = {
        name.partition(".")[0]
        for module, names in IMPORTS.items()
        if module.startswith("rlm.")
        for name in names
    }
    assert not foreign & {"verifiers", "torch", "rlm_train", "oolong"}


def test_the_worker_imports_the_standard_library_alone() -> None:
    worker = {module: names for module, names in IMPORTS.items() if module.startswith("rlm.repl.worker")}
    foreign = [
        f"{module} imports {name}"
        for module, names in worker.items()
        for name in names
        if not name.startswith("rlm.repl.worker") and name.partition(".")[0] not in sys.stdlib_module_names
    ]
    assert foreign == ["rlm.repl.worker.process.contexts imports pyarrow"]  # only when a table arrives


def test_a_module_name_stands_for_one_thing() -> None:
    counts = Counter(path.stem for path in MODULES.values() if not path.stem.startswith("__"))
    assert {name for name, count in counts.items() if count > 1} == TWO_MODULES


def test_a_class_name_stands_for_one_thing() -> None:
    nodes = (node for tree in TREES.values() for node in ast.walk(tree))
    counts = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert {name for name, count in counts.items() if count > 1} == TWO_CLASSES


def test_what_is_flat_and_has_no_underscore_is_public() -> None:
    flat = {path.stem for path in (ROOT / "rlm").glob("[!_]*.py")}
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: rlm\.(\w+)", pages, re.MULTILINE))
    assert flat <= documented | {"rlm"}  # `rlm.rlm` has the class RLM alone, which `rlm` exports
