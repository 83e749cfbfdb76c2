"""Imports only go down, and in no circle. The layers are the rows of the first table of docs/architecture.md."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = {"rlm": ROOT, "rlm_train": ROOT / "training", "oolong": ROOT / "environments" / "oolong"}
TABLE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## How a rollout flows")[0]
LAYERS = [re.findall(r"`([^`]+)`", row) for row in re.findall(r"^\| (`[^|]+) \|", TABLE, re.MULTILINE)]

Imports = dict[str, set[str]]


def _modules() -> dict[str, Path]:
    found = {}
    for name, folder in SOURCES.items():
        for path in (folder / name).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Statements that run: not those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from _statements(child)


def _imports(module: str) -> set[str]:
    """Full names of the modules that a module imports, also those that it imports within functions."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8"))):
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
