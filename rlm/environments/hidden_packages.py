"""Installed packages that the code of a REPL is not to see: those that score it, with their data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rlm.errors import ConfigError

GRADERS = ("verifiers", "rlm-train")
"""Distributions that are hidden, and so is every one that requires one of them or of those: environments, that is."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Something that pip installed."""

    name: str
    requires: frozenset[str]
    folder: Path
    """Its `.dist-info`."""

    def files(self) -> Iterator[Path]:
        """What was installed. Of an editable one, what is in the folder of packages."""
        try:
            lines = (self.folder / "RECORD").read_text("utf-8", "replace").splitlines()
        except OSError:  # who packages for a system may leave it out
            lines = [f"{name}/__init__.py" for name in self._guess()] + [
                f"{name}.py" for name in self._guess()
            ]
            lines = [line for line in lines if (self.folder.parent / line).exists()]
        for line in lines:
            path = line[1:].partition('",')[0] if line.startswith('"') else line.partition(",")[0]
            yield self.folder.parent / path

    def _guess(self) -> list[str]:
        try:
            return (self.folder / "top_level.txt").read_text().split()
        except OSError:
            return [self.name.replace("-", "_")]

    def modules(self) -> set[str]:
        """Names that can be imported, as far as the list of files tells."""
        names = set()
        for file in self.files():
            first, *rest = file.relative_to(self.folder.parent).parts
            if rest and not first.endswith((".dist-info", "__pycache__")) and first != "..":
                names.add(first)
            elif not rest and file.suffix in (".py", ".so"):
                names.add(first.partition(".")[0])
        return names


def installed(folders: Iterable[str]) -> list[Distribution]:
    """The distributions in these folders of packages."""
    found = []
    for folder in folders:
        for info in sorted(Path(folder).glob("*.dist-info")):
            try:
                head = (info / "METADATA").read_bytes().partition(b"\n\n")[0].decode("utf-8", "replace")
            except OSError:
                continue
            title = re.search(r"(?m)^Name: *(\S+)", head)
            # What only an extra asks for does not make a package an environment.
            needed = [
                name
                for name, rest in re.findall(r"(?m)^Requires-Dist: *([\w.-]+)(.*)$", head)
                if not re.search(r";.*\bextra *==", rest)
            ]
            if title is not None:
                found.append(Distribution(_plain(title[1]), frozenset(map(_plain, needed)), info))
    return found


def hidden_paths(folders: Iterable[str], named: Iterable[str]) -> list[str]:
    """The paths of all packages, modules and other files that are to be hidden.

    Args:
        folders: the folders of packages that are visible.
        named: distributions, or names to import, that are hidden besides.

    Raises:
        ConfigError: one of them is not installed.
    """
    distributions = installed(folders)
    hidden = set(GRADERS)
    for name in named:
        matches = [d.name for d in distributions if d.name == _plain(name) or name in d.modules()]
        if not matches:
            near = get_close_matches(_plain(name), [d.name for d in distributions], n=1)
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
    """The least paths that cover a distribution, and no file of another one. What Python compiles of a module is not among
    them, as it may do so later: who hides a module hides that."""
    site = distribution.folder.parent
    real = site.resolve()
    found = {real / distribution.folder.name}
    whole = {distribution.folder.name}
    """What is covered of the folder of packages itself."""
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
                continue  # others may have modules in it
            found.add(path)
            if path.parent == real:
                whole.add(part)
            break
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
