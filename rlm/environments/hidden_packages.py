"""Installed packages that a sandbox hides from the code of a REPL: packages that score it, with their data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rlm.errors import ConfigError

GRADERS = ("verifiers", "rlm-train")
"""Distributions that are always hidden. So is every distribution that requires one, directly or not, as packages of
verifiers environments do."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution."""

    name: str
    """Its normalized name."""
    requires: frozenset[str]
    """The normalized names of the distributions that it requires, without those for an extra alone."""
    folder: Path
    """Its `.dist-info` directory."""

    def files(self) -> Iterator[Path]:
        """The installed files. For an editable installation: only those in the folder of packages."""
        try:
            lines = (self.folder / "RECORD").read_text("utf-8", "replace").splitlines()
        except OSError:  # packages of a Linux distribution may have no RECORD
            lines = [f"{name}/__init__.py" for name in self._guess()] + [
                f"{name}.py" for name in self._guess()
            ]
            lines = [line for line in lines if (self.folder.parent / line).exists()]
        for line in lines:
            path = line[1:].partition('",')[0] if line.startswith('"') else line.partition(",")[0]
            yield self.folder.parent / path

    def _guess(self) -> list[str]:
        """The names that can be imported, where there is no RECORD."""
        try:
            return (self.folder / "top_level.txt").read_text().split()
        except OSError:
            return [self.name.replace("-", "_")]

    def modules(self) -> set[str]:
        """The names that can be imported, as the list of files shows them."""
        names = set()
        for file in self.files():
            first, *rest = file.relative_to(self.folder.parent).parts
            if rest and not first.endswith((".dist-info", "__pycache__")) and first != "..":
                names.add(first)
            elif not rest and file.suffix in (".py", ".so"):
                names.add(first.partition(".")[0])
        return names


def installed(folders: Iterable[str]) -> list[Distribution]:
    """The distributions in folders of packages."""
    found = []
    for folder in folders:
        for info in sorted(Path(folder).glob("*.dist-info")):
            try:
                head = (info / "METADATA").read_bytes().partition(b"\n\n")[0].decode("utf-8", "replace")
            except OSError:
                continue
            title = re.search(r"(?m)^Name: *(\S+)", head)
            # A package is no environment because one of its extras requires a grader.
            needed = [
                name
                for name, rest in re.findall(r"(?m)^Requires-Dist: *([\w.-]+)(.*)$", head)
                if not re.search(r";.*\bextra *==", rest)
            ]
            if title is not None:
                found.append(Distribution(_normalized(title[1]), frozenset(map(_normalized, needed)), info))
    return found


def hidden_paths(folders: Iterable[str], named: Iterable[str]) -> list[str]:
    """The paths of all packages, modules and other files to hide: those of `GRADERS`, of what requires them, and of `named`.

    Args:
        folders: the visible folders of packages.
        named: further packages to hide, by the name of the distribution or of a module.

    Raises:
        ConfigError: a package in `named` is not installed.
    """
    distributions = installed(folders)
    hidden = set(GRADERS)
    for name in named:
        matches = [d.name for d in distributions if d.name == _normalized(name) or name in d.modules()]
        if not matches:
            near = get_close_matches(_normalized(name), [d.name for d in distributions], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"hidden: no package {name!r} is installed{hint}")
        hidden.update(matches)
    more = True
    while more:
        more = False
        for distribution in distributions:
            if distribution.name not in hidden and distribution.requires & hidden:
                hidden.add(distribution.name)
                more = True
    paths: set[str] = set()
    for distribution in distributions:
        if distribution.name in hidden:
            paths.update(map(str, _paths(distribution)))
    return sorted(paths)


def _paths(distribution: Distribution) -> set[Path]:
    """The fewest paths that cover a distribution, and no file of another one. Compiled code (`__pycache__`) is not covered, as
    Python may write it later: `RootDirectory` hides it with its module."""
    site = distribution.folder.parent
    real = site.resolve()
    found = {real / distribution.folder.name}
    whole = {distribution.folder.name}
    """The entries of the folder of packages that are covered as a whole."""
    for file in distribution.files():
        parts = file.relative_to(site).parts
        if parts[0] in whole or parts[0].endswith(".pth") or "__pycache__" in parts:
            continue
        if parts[0] == "..":
            outside = Path(file.parent.resolve(), file.name)
            if outside.parent.name not in ("bin", "Scripts"):
                found.add(outside)
            continue
        path = real
        for part in parts:
            path /= part
            if path.is_dir() and not (path / "__init__.py").exists():
                continue  # a namespace package: other distributions may have modules in it
            found.add(path)
            if path.parent == real:
                whole.add(part)
            break
    return found


def _normalized(name: str) -> str:
    """The name of a distribution, normalized as PEP 503 says."""
    return re.sub(r"[-_.]+", "-", name).lower()
