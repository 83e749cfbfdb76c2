"""The far side of a REPL as one file, which any CPython from 3.9 on runs: `python worker.pyz`."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of each file in the archive, so that equal sources make equal archives."""
_MAIN = """\
import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # runs repeat, and a running interpreter cannot change its hash seed
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *getattr(sys, "orig_argv", ["", *sys.argv])[1:]])

from worker.__main__ import main

# The code of the cells must find its own modules, not the worker's modules of the same names.
sys.path.pop(0)
for name in [name for name in sys.modules if name.partition(".")[0] == "worker"]:
    del sys.modules[name]
main()
"""


@cache
def archive() -> bytes:
    """The archive: `rlm.repl.worker` as the package `worker`, and a `__main__` that serves one REPL over stdin and stdout.
    The same sources give the same bytes on any machine. About 90 KB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        sources = dict(_sources(files("rlm.repl.worker"), "worker"))
        for name, source in sorted({**sources, "__main__.py": _MAIN.encode()}.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            zipped.writestr(entry, source)
    return buffer.getvalue()


def _sources(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        inner = f"{name}/{item.name}"
        if item.is_dir():
            yield from _sources(item, inner)
        elif item.name.endswith(".py"):
            yield inner, item.read_bytes()


@cache
def archive_file() -> Path:
    """A file with the archive, in a directory that only this user can read. It is made at the first call and removed when
    this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="rlm-worker-"))
    atexit.register(_remove, folder, os.getpid())
    path = folder / "worker.pyz"
    path.write_bytes(archive())
    return path


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child shares the file, and must not remove it
        shutil.rmtree(folder, ignore_errors=True)
