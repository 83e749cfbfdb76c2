"""The file in which a map keeps its results, so that a later map can continue it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from rlm._redaction import Redactor
from rlm.errors import ConfigError, LogError
from rlm.logger.line_file import LineFile, dumps, read_lines
from rlm.types import RLMChatCompletion

FORMAT_VERSION = 1

_log = logging.getLogger(__name__)


class Results:
    """A file of results by key. Answers and messages are kept unchanged: a later map gets what this one got. Secrets are
    removed (`rlm._redaction`) from error texts alone, which come from servers.

    Args:
        path: made with its parent folders if it does not exist.

    Raises:
        LogError: the file is no results file of a map.
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path)
        self._redactor = Redactor()
        self._failing = False
        self._finished: dict[str, deque[RLMChatCompletion]] = defaultdict(deque)
        try:
            if path.exists():
                self._read(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab"):
                pass
        except OSError as error:
            raise ConfigError(f"results cannot be kept in {path}: {error.strerror or error}") from error

    def _read(self, path: Path) -> None:
        for number, data in read_lines(path):
            where = f"{path}, line {number}"
            key = data.get("key")
            if data["v"] != FORMAT_VERSION or not isinstance(key, str):
                raise LogError(f"{where}: this line is no result of a map (version {FORMAT_VERSION})")
            if data.get("error") is not None:
                continue
            try:
                completion = RLMChatCompletion.from_dict(data["completion"])
                if not isinstance(completion.response, str):
                    raise TypeError("the response is no str")
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise LogError(
                    f"{where}: the completion of this result cannot be read "
                    f"({type(error).__name__}: {error}); delete the line to run its input again"
                ) from error
            self._finished[key].append(completion)

    def take(self, key: str) -> RLMChatCompletion | None:
        """Removes and returns a result of an earlier map: each of several equal inputs has its own. None if there is none."""
        found = self._finished.get(key)
        return found.popleft() if found else None

    def add(
        self,
        key: str,
        index: int,
        question: str | None,
        completion: RLMChatCompletion | None,
        error: Exception | None,
    ) -> None:
        """Appends a result. If that fails, the map continues, and one warning is logged.

        Args:
            key: the key by which `take` finds the result.
            index: number of the input, from 0.
            completion: None if there was no run.
            error: None if there is an answer.
        """
        data: dict[str, Any] | None = None
        if completion is not None:
            data = completion.to_dict()
            data["error"] = self._redacted(data["error"])
        line = {
            "v": FORMAT_VERSION,
            "key": key,
            "time": time.time(),
            "index": index,
            "question": question,
            "completion": data,
            "error": None if error is None else self._redacted(f"{type(error).__name__}: {error}"),
        }
        try:
            self._file.append(dumps(line))
        except OSError as failure:
            if not self._failing:
                self._failing = True
                _log.warning("results are not saved: %s cannot be written: %s", self._file.path, failure)

    def _redacted(self, text: str | None) -> str | None:
        return None if text is None else self._redactor.text(text)
