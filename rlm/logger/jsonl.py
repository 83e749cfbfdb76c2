"""The event log: one JSON object a line, appended as things happen.

Every line has `v` (the version of this format: 1), `type`, `time` (seconds since 1970), `run`, `parent` (the run above, or
null) and `depth`. The types and what they add:

    run_start  model, question, context (kind, size, sha256), system_prompt, first_message, max_iterations
    reply      content, reasoning, finish_reason, usage, retries, seconds
    cell       number, code, status, stdout, stderr, error, locals, answer, seconds
    subcall    kind, model, prompt_chars, prompt_head, response, error, seconds, input_tokens, output_tokens
    turn       turn, observation, final_answer, seconds
    run_end    stop, response, error, stats, usage

A context is never written, only its hash and size; keys and headers never reach an event.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1


class RLMLogger:
    """Keeps trajectories for `completion.metadata`, and writes the event log if it has a folder. One logger may serve
    any number of runs at once, in several threads."""

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, file_name: str = "rlm") -> None:
        """
        Args:
            log_dir: folder of the log, made if it is missing. None: no file.
            file_name: start of the file's name; time and a random part follow.
        """
        self._lock = threading.Lock()
        self.path: Path | None = None
        """The log file; made when the first event is written."""
        if log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            self.path = folder / f"{file_name}_{stamp}_{uuid.uuid4().hex[:8]}.jsonl"

    def trajectory(self) -> Trajectory:
        """The record of one run."""
        return Trajectory(self)

    def write(self, event: dict[str, Any]) -> None:
        """Appends one event to the file, if there is one."""
        if self.path is None:
            return
        # Escaped to ASCII, so that text that is not valid Unicode can be written too.
        line = json.dumps({"v": FORMAT_VERSION, **event}, default=repr) + "\n"
        with self._lock, self.path.open("a", encoding="ascii") as file:
            file.write(line)


class Trajectory:
    """One completion as its logger saw it."""

    def __init__(self, logger: RLMLogger) -> None:
        self._logger = logger
        self._start: dict[str, Any] = {}

    def record(self, event: dict[str, Any]) -> None:
        """Takes an event of the run or of a run below it."""
        if event["type"] == "run_start" and event["parent"] is None:
            self._start = event
        self._logger.write(event)

    def metadata(self, iterations: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """`run_metadata` and `iterations` as `completion.metadata` holds them."""
        kept = ("run", "model", "question", "context", "system_prompt", "first_message", "max_iterations")
        path = self._logger.path
        return {
            "run_metadata": {
                **{name: self._start.get(name) for name in kept},
                "log_file": None if path is None else str(path),
            },
            "iterations": list(iterations),
        }
