"""The event log: a file of JSON lines, one for each event, written as the events happen.

A line holds `v` (the version of the format: 2) and the `to_dict()` of an event of `rlm.events`, without secrets
(`rlm._redaction`). `message` is left out where it holds nothing but the role and the text. The schema of a line is
`events.v2.schema.json` beside this file. A later release may add types of events, and fields with defaults; any other change
gets a new `v`.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from rlm._redaction import Redactor
from rlm._wording import a
from rlm.errors import LogError
from rlm.events import EVENTS, Event
from rlm.logger.line_file import LineFile, dumps, read_lines
from rlm.logger.trajectory import Trajectory

FORMAT_VERSION = 2

_log = logging.getLogger(__name__)

_NAMES = {name: tuple(field.name for field in fields(kind)) for name, kind in EVENTS.items()}


class RLMLogger:
    """Keeps trajectories for `completion.metadata`, and writes the event log if it has a folder. One logger serves any number
    of runs at once, in several threads and processes.

    A log that cannot be written changes nothing in a run. It is reported once, as a warning of the Python logger
    `rlm.logger.event_log`.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, file_name: str = "rlm") -> None:
        """
        Args:
            log_dir: folder of the log; it is made if it is missing. None: no file.
            file_name: beginning of the file's name. The time and a random part follow it.

        Raises:
            OSError: the folder cannot be made.
        """
        self.path: Path | None = None
        """Path of the log file, which is made when the first event is written. None without a folder."""
        self._file: LineFile | None = None
        self._failing = False
        if log_dir is not None:
            folder = Path(log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
            self.path = folder / f"{file_name}_{stamp}_{os.urandom(4).hex()}.jsonl"
            self._file = LineFile(self.path)

    def trajectory(self) -> Trajectory:
        """Returns a new trajectory; its `record` takes the events of one completion and writes them to the log."""
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
                _log.warning("the log %s cannot be written, so events are lost: %s", self.path, error)


def encode(event: Event, redactor: Redactor) -> str:
    """Returns an event as a line of the log, without secrets."""
    data: dict[str, Any] = {"v": FORMAT_VERSION, "type": event.type}
    for name in _NAMES[event.type]:
        data[name] = getattr(event, name)
    if data.get("message") == _plain_message(data):
        del data["message"]
    if dict not in map(type, data.values()):
        # The quick way, for most events: without a dict, only texts can hold a secret, and they rarely do.
        line = dumps(data)
        if not redactor.may_be_in(line):
            return line
    return dumps({name: redactor.data(value) for name, value in data.items()})


def decode(data: dict[str, Any]) -> Event | None:
    """Returns the event of a line, without fields that this version does not know; None for an unknown type of event.

    Raises:
        ValueError: the line is of another version, or lacks a field.
    """
    version = data.get("v")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the line has version {version!r} of the format; this release reads version {FORMAT_VERSION}"
        )
    if not isinstance(data.get("type"), str):
        raise ValueError("the line has no type of event")
    kind = EVENTS.get(data["type"])
    if kind is None:
        return None
    if "message" in _NAMES[kind.type] and "message" not in data:
        data = {**data, "message": _plain_message(data)}
    event: Event = _build(kind, data)
    return event


def read_log(path: str | os.PathLike[str]) -> list[Event]:
    """Returns the events of a log, in the order in which they were written.

    Two kinds of lines are left out: lines cut off when their process was killed, and types of events that this version does
    not know.

    Raises:
        LogError: the file cannot be read, or a line is no event of this version of the format. The message names the line.
    """
    events = []
    for number, data in read_lines(path):
        try:
            event = decode(data)
        except ValueError as error:
            raise LogError(f"{os.fspath(path)}, line {number}: {error}") from error
        if event is not None:
            events.append(event)
    return events


def _plain_message(data: dict[str, Any]) -> dict[str, Any]:
    """The message of a reply that is only a text."""
    return {"role": "assistant", "content": data.get("content", data.get("response"))}


_KINDS: dict[Any, Any] = {str: str, str | None: str | None, int: int, float: int | float}
"""The types in JSON of the fields whose values are compared, looked up or added."""


def _build(kind: type[Any], data: dict[str, Any]) -> Any:
    values = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.name in data:
            hint, value = hints[field.name], data[field.name]
            nested = is_dataclass(hint)
            if not isinstance(value, dict if nested else _KINDS.get(hint, object)):
                raise ValueError(f"the field {field.name!r} cannot be {a(value)}")
            values[field.name] = _build(hint, value) if nested else value
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"the field {field.name!r} is missing")
    return kind(**values)
