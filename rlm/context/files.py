"""Files and documents as contexts."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from rlm.errors import ContextError

CHUNK: Final = 1 << 20
_TEXTS: Final = ("page_content", "text", "content")
_METADATA: Final = ("metadata", "meta")


def memory_file(write: Callable[[int], object]) -> int:
    """A descriptor of a nameless file in memory; on Linux it is sealed, so that nobody can change it.

    Args:
        write: writes the content to a descriptor.
    """
    if sys.platform == "linux":
        fd = os.memfd_create("rlm-context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        import tempfile  # takes a while, and Linux does not need it

        with tempfile.TemporaryFile(prefix="rlm-context-") as unnamed:
            fd = os.dup(unnamed.fileno())
    try:
        write(fd)
        if sys.platform == "linux":
            import fcntl

            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def pieces(fd: int) -> Iterator[bytes]:
    """What is in a file, in pieces of about 1 MB."""
    at = 0
    while piece := os.pread(fd, CHUNK, at):
        yield piece
        at += len(piece)


def copy(path: Path) -> tuple[int, int | None]:
    """Copies a file into memory.

    Returns:
        The descriptor of the copy (see `memory_file`), and its characters if it is UTF-8.

    Raises:
        ContextError: it cannot be read.
    """
    characters: int | None = 0

    def write(target: int) -> None:
        nonlocal characters
        decoder = codecs.getincrementaldecoder("utf-8")()
        for piece in _read(path):
            write_all(target, piece)
            if characters is not None:
                try:
                    characters += len(decoder.decode(piece))
                except UnicodeDecodeError:
                    characters = None
        try:
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            characters = None

    return memory_file(write), characters


def load(path: Path) -> str | bytes:
    """The text of a file, if it is UTF-8, else its bytes.

    Raises:
        ContextError: it cannot be read.
    """
    data = b"".join(_read(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _read(path: Path) -> Iterator[bytes]:
    """
    Raises:
        ContextError: there is no such file, or it is not one.
    """
    try:
        fd = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # a pipe would have us wait for its writer
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ContextError(f"{path} is not a regular file")
            while piece := file.read(CHUNK):
                yield piece
    except IsADirectoryError as error:
        raise ContextError(
            f"{path} is a folder: pass the files in it, list(path.rglob('*.txt')) say"
        ) from error
    except FileNotFoundError as error:
        raise ContextError(f"there is no file {path}") from error
    except OSError as error:
        raise ContextError(f"the file {path} cannot be read: {error.strerror}") from error


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file, and does not wait for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def documents(value: Any) -> Any:
    """Reads a list or tuple of paths, or a dict of names and paths.

    Returns:
        A list of dicts with "path" and "text" ("data" in place of "text" if the file is not UTF-8); a dict of names and
        texts (or bytes); `value` itself if it is neither.

    Raises:
        ContextError: a file cannot be read.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(item, Path) for item in value):
        contents = [(path, load(path)) for path in value]
        return [
            {"path": str(path), "text" if isinstance(content, str) else "data": content}
            for path, content in contents
        ]
    if isinstance(value, dict) and value and all(isinstance(item, Path) for item in value.values()):
        return {name: load(path) for name, path in value.items()}
    return value


def document(value: Any) -> Any:
    """A document of a library: an object with a text (`page_content`, `text` or `content`) and a mapping of metadata
    (`metadata` or `meta`), as a dict with "text" and "metadata"; `value` itself if it is none."""
    if isinstance(value, type):
        return value
    for name in _METADATA:
        metadata = getattr(value, name, None)
        if isinstance(metadata, Mapping):
            for attribute in _TEXTS:
                text = getattr(value, attribute, None)
                if isinstance(text, str):
                    return {"text": text, "metadata": dict(metadata)}
    return value
