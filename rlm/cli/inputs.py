"""The context and the question of `rlm run`, from the words of the command line."""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlm.errors import ConfigError

STDIN = "-"

_LIKE_A_PATH = re.compile(r"[/*\[]|\.\w+$")


def split_question(question: str | None, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separates the question from the files, for command lines such as `--context a.txt b.txt "Which is longer?"`.

    The last word is the question if no question was given, there are other words, and no file has its name.

    Args:
        question: the question that was given on its own; None: there is none.
        words: the words after `--context`.

    Returns:
        The question and the words that name files.

    Raises:
        ConfigError: the last word could be a question or a misspelt file.
    """
    words = list(words)
    if (
        question is not None
        or len(words) < 2
        or words[-1] == STDIN
        or _exists(words[-1])
        or _matches(words[-1])
    ):
        return question, words
    last = words[-1]
    if _LIKE_A_PATH.search(last) and not any(character.isspace() for character in last):
        raise ConfigError(f"there is no file {last!r}; if it is the question, put it in front of --context")
    return last, words[:-1]


def read_context(words: Sequence[str], encoding: str | None = None) -> Any:
    """The input of a run.

    Args:
        words: paths, glob patterns (`**` matches folders too), or `-` for stdin.
        encoding: encoding of text files. None: UTF-8, and a file that is not valid UTF-8 becomes bytes.

    Returns:
        An input for `RLM.completion`; None if there are no words. One file gives its text or bytes. Several give a list
        of dicts with "path" and "text" ("data" for bytes). The list has the order of the words; the matches of a pattern
        are sorted; each file comes once.

    Raises:
        ConfigError: a file cannot be read, a pattern matches nothing, or a text is not valid in the encoding.
    """
    names = _expand(words)
    paths = [Path(name) for name in names]
    if encoding is None and STDIN not in names and all(path.is_file() for path in paths):
        return None if not paths else paths[0] if len(paths) == 1 else paths
    contents = [_decode(name, _read(name), encoding) for name in names]
    if len(contents) == 1:
        return contents[0]
    return [
        {"path": name, "text" if isinstance(content, str) else "data": content}
        for name, content in zip(names, contents, strict=True)
    ]


def stdin_is_piped() -> bool:
    """Whether stdin is a pipe, a file or a socket, and so may hold the input. A terminal and /dev/null do not."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def read_text(name: str) -> str:
    """The text of a file.

    Args:
        name: a path, or `-` for stdin.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    text = _decode(name, _read(name), "utf-8")
    assert isinstance(text, str)
    return text


def read_json(name: str) -> Any:
    """The value in a JSON file.

    Raises:
        ConfigError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(name))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name!r} is not JSON: {error}") from None


def _expand(words: Sequence[str]) -> list[str]:
    names: list[str] = []
    seen: set[str] = set()
    for word in words:
        if not word:
            raise ConfigError("--context has an empty word: give the name of a file")
        if word == STDIN or _exists(word):
            found = [word]
        elif glob.has_magic(word):
            found = _matches(word)
            if not found:
                raise ConfigError(f"no file matches {word!r}")
        else:
            raise ConfigError(f"there is no file {word!r}")
        if word != STDIN and Path(word).is_dir():
            raise ConfigError(f"{word!r} is a folder; name its files: '{word.rstrip('/')}/**/*'")
        for name in found:
            key = name if name == STDIN else os.path.realpath(name)
            if key not in seen:
                seen.add(key)
                names.append(name)
    return names


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name, or has a NUL: it is a question
        return False


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return []
    try:
        found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - the pattern may be absolute
        return sorted(name for name in found if not Path(name).is_dir())
    except (OSError, ValueError):
        return []


def _read(name: str) -> bytes:
    if name == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"{name!r} cannot be read: {error.strerror or error}") from None


def _decode(name: str, data: bytes, encoding: str | None) -> str | bytes:
    shown = "stdin" if name == STDIN else repr(name)
    try:
        return data.decode(encoding or "utf-8")
    except LookupError:
        raise ConfigError(
            f"there is no encoding {encoding!r}; use a name that Python knows, such as latin-1"
        ) from None
    except UnicodeDecodeError as error:
        if encoding is None:
            return data
        raise ConfigError(f"{shown} is not {encoding}: {error.reason} at byte {error.start}") from None
