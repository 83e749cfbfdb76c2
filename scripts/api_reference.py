"""Writes docs/api.md: the public names with their signatures and docstrings, read from the sources without importing them.

python -m scripts.api_reference            # write it
python -m scripts.api_reference --check    # end with 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "api.md"

MODULES = (
    "rlm",
    "rlm.types",
    "rlm.events",
    "rlm.clients",
    "rlm.environments",
    "rlm.environments.local",
    "rlm.logger",
    "rlm.batch.map",
    "rlm.replay",
    "rlm.testing",
)
"""In the order of the document. A name that two of them have is described at the first."""

_HEAD = """\
# API reference

Made from the docstrings by `make api`; a test holds it to them. [engine.md](engine.md) is the place to begin.
"""
_WIDTH = 100
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Args, errors):(.*)$")
_ENTRY = re.compile(r"^(\*{0,2}[A-Za-z_][\w.]*): +(.*)$")


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    name: str
    tree: ast.Module
    defined: dict[str, int] = field(default_factory=dict)
    """Names that it defines, and where in its body."""
    imported: dict[str, str] = field(default_factory=dict)
    """Names that it imports, and the modules that they come from."""

    @property
    def public(self) -> list[str]:
        """Its `__all__`, or else what it defines without an underscore in front."""
        for statement in self.tree.body:
            if isinstance(statement, ast.Assign) and _target(statement) == "__all__":
                return [str(name) for name in ast.literal_eval(statement.value)]
        return [name for name in self.defined if not name.startswith("_")]


@cache
def load(name: str) -> Module:
    """Reads a module of the package.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    module = Module(name, ast.parse(path.read_text(encoding="utf-8")))
    for statement in _with_branches(module.tree.body):
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            for alias in statement.names:
                module.imported[alias.asname or alias.name] = statement.module
    for place, statement in enumerate(module.tree.body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            module.defined[statement.name] = place
        else:
            target = _target(statement)
            if target is not None:
                module.defined[target] = place
    return module


def _with_branches(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those under an `if` too: imports for type checkers stand there."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from statement.body


def reference() -> str:
    """The text of the document."""
    parts = [_HEAD]
    described: dict[tuple[str, str], str] = {}
    for module_name in MODULES:
        module = load(module_name)
        parts.append(f"## {module_name}\n")
        parts.append(_text(ast.get_docstring(module.tree) or ""))
        for name in module.public:
            if _is_module(f"{module_name}.{name}"):
                continue
            home = _home(module_name, name)
            if home in described:
                parts.append(f"`{name}`: see [{described[home]}](#{described[home].replace('.', '')}).\n")
                continue
            described[home] = module_name
            parts.append(_entry(*home))
    text = "\n".join(part for part in parts if part).rstrip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def _home(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and the name there.

    Raises:
        LookupError: nobody defines it.
    """
    start = module
    while name not in load(module).defined:
        source = load(module).imported.get(name)
        if source is None or source == module or source.partition(".")[0] != "rlm":
            raise LookupError(
                f"{start} has {name} among its public names, and {module} does not say where it is from"
            )
        module = source
    return module, name


def _entry(module: str, name: str) -> str:
    body = load(module).tree.body
    place = load(module).defined[name]
    statement = body[place]
    if isinstance(statement, ast.ClassDef):
        return _class(statement)
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return _function(statement, f"### `{name}`")
    source = ast.unparse(statement)
    if len(source) > 300:
        source = f"{name} = ..."
    return f"### `{name}`\n\n{_code(source)}\n{_text(_doc_after(body, place))}"


def _class(node: ast.ClassDef) -> str:
    bases = [ast.unparse(base) for base in node.bases]
    init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    parts = [f"### `{node.name}`\n"]
    shown = [base for base in bases if base not in ("Protocol", "object")]
    if shown:
        parts.append(f"Is a {' and a '.join(f'`{base}`' for base in shown)}.\n")
    if init is not None:
        parts.append(_code(_signature(node.name, init.args, None, method=True)))
    parts.append(_text(ast.get_docstring(node) or ""))
    if init is not None:
        parts.append(_text(ast.get_docstring(init) or ""))
    parts.append(_fields(node))
    parts += [
        _method(node.name, member)
        for member in node.body
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith("_")
    ]
    return "\n".join(part for part in parts if part)


def _fields(node: ast.ClassDef) -> str:
    """Fields and attributes, as a list."""
    found: list[tuple[str, str]] = []
    for place, statement in enumerate(node.body):
        name = _target(statement)
        if name is not None and not name.startswith("_"):
            source = re.sub(r"field\(default_factory=(\w+)\)", r"\1()", ast.unparse(statement))
            found.append((source, _doc_after(node.body, place)))
    for function in node.body:  # what __init__ sets and documents
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            for place, statement in enumerate(function.body):
                doc = _doc_after(function.body, place)
                target: ast.expr | None = None
                if isinstance(statement, ast.AnnAssign):
                    target = statement.target
                elif isinstance(statement, ast.Assign):
                    target = statement.targets[0]
                if isinstance(target, ast.Attribute) and not target.attr.startswith("_") and doc:
                    annotation = (
                        f": {ast.unparse(statement.annotation)}"
                        if isinstance(statement, ast.AnnAssign)
                        else ""
                    )
                    found.append((f"{target.attr}{annotation}", doc))
    lines = [f"- `{source}`{f': {_flat(doc)}' if doc else ''}" for source, doc in found]
    return "\n".join(lines) + "\n" if lines else ""


def _method(owner: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(name.endswith((".setter", "overload")) for name in decorators):
        return ""
    if "property" in decorators:
        kind = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
        return f"#### `{owner}.{node.name}`{kind and f': `{kind[4:]}`'}\n\n{_text(ast.get_docstring(node) or '')}"
    return _function(node, f"#### `{owner}.{node.name}`", method="staticmethod" not in decorators)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, title: str, *, method: bool = False) -> str:
    awaited = "await " if isinstance(node, ast.AsyncFunctionDef) and not _yields(node) else ""
    signature = awaited + _signature(node.name, node.args, node.returns, method=method)
    return f"{title}\n\n{_code(signature)}\n{_text(ast.get_docstring(node) or '')}"


def _yields(node: ast.AsyncFunctionDef) -> bool:
    return any(isinstance(part, ast.Yield) for part in ast.walk(node))


def _signature(name: str, arguments: ast.arguments, returns: ast.expr | None, *, method: bool) -> str:
    args = list(_arguments(arguments))
    if method:
        args = args[1:]
    end = "" if returns is None else f" -> {ast.unparse(returns)}"
    line = f"{name}({', '.join(args)}){end}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {arg},\n" for arg in args) + f"){end}"


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: Sequence[ast.expr | None] = [
        *([None] * (len(positional) - len(arguments.defaults))),
        *arguments.defaults,
    ]
    for number, (arg, default) in enumerate(zip(positional, defaults, strict=True), 1):
        yield _argument(arg, default)
        if number == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg is not None:
        yield f"*{_argument(arguments.vararg, None)}"
    elif arguments.kwonlyargs:
        yield "*"
    for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(arg, default)
    if arguments.kwarg is not None:
        yield f"**{_argument(arguments.kwarg, None)}"


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    text = arg.arg if arg.annotation is None else f"{arg.arg}: {ast.unparse(arg.annotation)}"
    if default is None:
        return text
    return (
        f"{text} = {ast.unparse(default)}" if arg.annotation is not None else f"{text}={ast.unparse(default)}"
    )


def _target(statement: ast.stmt) -> str | None:
    """The name that an assignment, or a `type` statement, gives a value to."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return None


def _doc_after(body: Sequence[ast.stmt], place: int) -> str:
    """The string below an assignment."""
    if place + 1 < len(body):
        below = body[place + 1]
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            value = below.value.value
            return value if isinstance(value, str) else ""
    return ""


def _code(text: str) -> str:
    return f"```py\n{text}\n```\n"


def _flat(doc: str) -> str:
    return " ".join(doc.split())


def _text(doc: str) -> str:
    """A docstring as Markdown: its sections become lists, what is indented becomes code."""
    lines: list[str] = []
    section = False
    code: list[str] = []
    for line in [*doc.strip("\n").splitlines(), ""]:
        head = _SECTION.match(line)
        if head is not None:
            section = True
            lines += ["", f"**{head[1]}**{f': {head[2].strip()}' if head[2].strip() else ''}", ""]
        elif section and line.startswith("    "):
            inner = line[4:]
            entry = _ENTRY.match(inner)
            if entry is not None:
                lines.append(f"- `{entry[1]}`: {entry[2]}")
            else:
                lines.append(f"  {inner.strip()}" if lines[-1].startswith(("- ", "  ")) else inner)
        elif not section and line.startswith("    ") and (code or not lines or not lines[-1].strip()):
            code.append(line[4:])
        elif not section and code and not line.strip():
            code.append("")
        else:
            section = section and not line.strip()
            if code:
                lines += ["```py", *"\n".join(code).rstrip().splitlines(), "```", ""]
                code = []
            lines.append(line)
    if code:
        lines += ["```py", *"\n".join(code).rstrip().splitlines(), "```"]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return f"{text}\n" if text else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if the document was to be checked and is not up to date."""
    parser = argparse.ArgumentParser(description="Write docs/api.md from the docstrings.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, and end with 1 if it is not up to date"
    )
    options = parser.parse_args(argv)
    text = reference()
    if not options.check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print("docs/api.md is not what the docstrings say: make api", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
