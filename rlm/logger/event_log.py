"""The event log: one JSON object a line, appended as things happen.

A line is `v` (the version of this format: 2) and `Event.to_dict()` of one of `rlm.events`, without what `rlm._redaction`
takes out; `events.v2.schema.json` beside this file is its schema. A later version adds fields with defaults at most, or has
another `v`. `message` is left out of a reply where it is nothing but the role and the content.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from rlm._redaction import Redactor
from rlm.errors import LogError
from rlm.events import EVENTS, Event
from rlm.logger.line_file import LineFile, dumps, read_lines
from rlm.logger.trajectory import Trajectory

FORMAT_VERSION = 2

_log = logging.getLogger(__name__)

_NAMES = {name: tuple(field.name for field in fields(kind)) for name, kind in EVENTS.items()}


class RLMLogger:
    """Keeps trajectories for `completion.metadata`, and writes the event log if it has a folder. One logger may serve any
    number of runs at once, in several threads and processes.

    A log that cannot be written changes nothing in a run: it is said once, as a warning of the logger `rlm.logger.event_log`.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, file_name: str = "rlm") -> None:
        """
        Args:
            log_dir: folder of the log, made if it is missing. None: no file.
            file_name: start of the file's name; time and a random part follow.
        """
        self.path: Path | None = None
        """The log file; made when the first event is written."""
        self._file: LineFile | None = None
        self._failing = False
        if log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            self.path = folder / f"{file_name}_{stamp}_{os.urandom(4).hex()}.jsonl"
            self._file = LineFile(self.path)

    def trajectory(self) -> Trajectory:
        """The record of one completion; its `record` is the listener."""
        redactor = Redactor()

        def write(event: Event) -> None:
            self._write(event, redactor)

        path = None if self.path is None else str(self.path)
        return Trajectory(redactor, log_file=path, sink=None if path is None else write)

    def _write(self, event: Event, redactor: Redactor) -> None:
        assert self._file is not None
        try:
            self._file.append(encode(event, redactor))
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.warning("events are lost: the log %s cannot be written: %s", self.path, error)


def encode(event: Event, redactor: Redactor) -> str:
    """An event as a line of the log."""
    data: dict[str, Any] = {"v": FORMAT_VERSION, "type": event.type}
    for name in _NAMES[event.type]:
        data[name] = getattr(event, name)
    if data.get("message") == _plain_message(data):
        del data["message"]
    if dict not in map(type, data.values()):
        # Most events, and many at once: there are no names of the caller in them, and seldom a secret.
        line = dumps(data)
        if not redactor.may_be_in(line):
            return line
    return dumps({name: redactor.data(value) for name, value in data.items()})


def decode(data: dict[str, Any]) -> Event:
    """The event of a line. Fields that this version does not know are left out.

    Raises:
        ValueError: it is none; the message says why.
    """
    version = data.get("v")
    if version != FORMAT_VERSION:
        raise ValueError(f"this is version {version!r} of the format, and version {FORMAT_VERSION} is read")
    kind = EVENTS.get(str(data.get("type")))
    if kind is None:
        raise ValueError(f"there is no event of the type {data.get('type')!r}")
    if "message" in _NAMES[kind.type] and "message" not in data:
        data = {**data, "message": _plain_message(data)}
    event: Event = _build(kind, data)
    return event


def read_log(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a log, in the order in which they were written. A last line that a crash has cut off is left out.

    Raises:
        LogError: the file cannot be read, or is no log of this version; the message says in which line.
    """
    events = []
    for number, data in read_lines(path):
        try:
            events.append(decode(data))
        except ValueError as error:
            raise LogError(f"{os.fspath(path)}, line {number}: {error}") from error
    return events


def _plain_message(data: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": data.get("content", data.get("response"))}


def _build(kind: type[Any], data: dict[str, Any]) -> Any:
    values = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.name in data:
            hint, value = hints[field.name], data[field.name]
            nested = is_dataclass(hint) and isinstance(value, dict)
            values[field.name] = _build(hint, value) if nested else value
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{field.name!r} is missing")
    return kind(**values)
