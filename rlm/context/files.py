"""Files, and documents of libraries, as contexts."""

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
"""Bytes, or characters, that are encoded or read at once."""
_TEXTS: Final = ("page_content", "text", "content")
_METADATA: Final = ("metadata", "meta")


def memory_file(write: Callable[[int], object]) -> int:
    """Makes an unnamed file in memory and returns its descriptor. On Linux the file is sealed: no process can change it.

    Args:
        write: writes the content to the descriptor that it is given.
    """
    if sys.platform == "linux":
        fd = os.memfd_create("rlm-context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        import tempfile  # imported on first use: Linux does not need it

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
    """Writes all of the data, in several system calls if needed."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def chunks(fd: int) -> Iterator[bytes]:
    """The content of a file in chunks of about 1 MB. The descriptor's position is neither used nor changed."""
    at = 0
    while chunk := os.pread(fd, CHUNK, at):
        yield chunk
        at += len(chunk)


def copy(path: Path) -> tuple[int, int | None]:
    """Copies a file into memory.

    Returns:
        The descriptor of the copy (see `memory_file`), and the number of its characters; None if it is not UTF-8.

    Raises:
        ContextError: the file cannot be read.
    """
    characters: int | None = 0

    def write(target: int) -> None:
        nonlocal characters
        decoder = codecs.getincrementaldecoder("utf-8")()
        for chunk in _read(path):
            write_all(target, chunk)
            if characters is not None:
                try:
                    characters += len(decoder.decode(chunk))
                except UnicodeDecodeError:
                    characters = None
        try:
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            characters = None

    return memory_file(write), characters


def load(path: Path) -> str | bytes:
    """The text of a file if it is UTF-8, otherwise its bytes.

    Raises:
        ContextError: the file cannot be read.
    """
    data = b"".join(_read(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _read(path: Path) -> Iterator[bytes]:
    """The content of a file in chunks.

    Raises:
        ContextError: there is no such file, it is not a regular file, or it cannot be read.
    """
    try:
        # O_NONBLOCK: opening a pipe would otherwise wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ContextError(f"{path} is not a regular file")
            while chunk := file.read(CHUNK):
                yield chunk
    except IsADirectoryError as error:
        raise ContextError(
            f"{path} is a folder: pass the files in it, for example list(path.rglob('*.txt'))"
        ) from error
    except FileNotFoundError as error:
        raise ContextError(f"there is no file {path}") from error
    except OSError as error:
        raise ContextError(f"the file {path} cannot be read: {error.strerror}") from error


def documents(value: Any) -> Any:
    """Reads the files of a list or tuple of paths, or of a dict of names and paths.

    Returns:
        For a list or tuple: a list of dicts with "path" and "text" ("data" in place of "text" if the file is not UTF-8). For a
        dict: a dict of names and texts (or bytes). For anything else: `value` itself.

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
    """Turns a document of a library into a dict with "text" and "metadata". A document is an object with a text
    (`page_content`, `text` or `content`) and a mapping (`metadata` or `meta`). Anything else is returned as it is."""
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
