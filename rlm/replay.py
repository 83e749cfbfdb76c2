"""Runs a completion again from its log, without a model.

    root, others = ReplayClient.clients("logs/rlm_2026-01-31_12-00-00_0a1b2c3d.jsonl")
    again = RLM(client=root, other_clients=others, max_depth=2).completion(the_same_text, the_same_question)

A `ReplayClient` answers each request with the reply that the log holds for it, failures included. The same prompt and options
lead to the same requests, so messages and observations are the same, byte for byte, unless the code uses clocks, ids or random
numbers. The first request that is not in the log ends the run with a `ReplayError`, which shows the difference.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlm import errors
from rlm.clients.base import Client, ModelReply
from rlm.engine.compaction import Compactor
from rlm.engine.history import History
from rlm.engine.request_keys import call_place, request_key
from rlm.errors import LimitError, LogError, ReplayError, RLMError
from rlm.events import Compaction, Event, Reply, RunStart, Subcall, Turn
from rlm.logger import read_log
from rlm.logger.run_nodes import RunNode
from rlm.logger.run_tree import RunTree
from rlm.types import Message, SamplingArgs, text_of

_EXCERPT = 60
"""Characters of a message that an error shows."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A request of the log, and the reply or the failure that answered it."""

    event: Reply | Subcall
    place: tuple[int, ...]
    """The request's place in its call tree: `rlm.engine.request_keys.call_place`."""
    messages: list[Message] | None
    """The messages of the request; None if the log does not hold them, as for a sub-call."""

    def __str__(self) -> str:
        event = self.event
        where = f"turn {event.turn}" if isinstance(event, Reply) else f"sub-call {event.call}"
        return f"{where} of run {event.run}"

    async def answer(self) -> ModelReply:
        """Returns the reply.

        Raises:
            RLMError: the recorded call failed; the error has the same type and message.
        """
        event = self.event
        if event.message is None:
            if event.error_type is None and isinstance(event, Subcall):
                # The sub-call was cancelled with its cell. The cell will be stopped again, which ends this wait.
                await asyncio.Event().wait()
            raise _error(event.error_type or "CancellationError", event.error or "the call was cancelled")
        content = text_of(event.message["content"])
        plain = event.message == {"role": "assistant", "content": content}
        return ModelReply(
            content=content,
            model=event.model,
            usage=event.usage,
            finish_reason=event.finish_reason,
            reasoning=event.reasoning if isinstance(event, Reply) else None,
            echo=None if plain else event.message,
            refusal=event.refusal,
            retries=event.retries,
        )


@dataclass(slots=True)
class _Tape:
    """The requests of a log, shared by all clients of a replay."""

    path: str
    recorded: list[_Recorded]
    windows: dict[str, int]
    """Windows in tokens, by model."""
    waiting: dict[str, list[_Recorded]] = field(default_factory=lambda: defaultdict(list))
    """Requests that have not come again yet, by their keys."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    end: RLMError | None = None
    """The error that ends all further requests: the run has left the log, or has reached its limit."""

    def __post_init__(self) -> None:
        for recorded in self.recorded:
            if recorded.event.request is not None:
                self.waiting[recorded.event.request].append(recorded)

    def take(self, model: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> _Recorded:
        key, here = request_key(model, messages, sampling), call_place.get()
        with self.lock:
            if self.end is not None:
                raise self.end
            waiting = self.waiting.get(key)
            if not waiting:
                self.end = ReplayError(self._missing_reply(model, messages, known=waiting is not None))
                raise self.end
            same = (number for number, recorded in enumerate(waiting) if recorded.place == here)
            return waiting.pop(next(same, 0))

    def _missing_reply(self, model: str, messages: Sequence[Message], *, known: bool) -> str:
        size = f"{len(messages)} message{'' if len(messages) == 1 else 's'}"
        head = f"{self.path} has no reply to a request of {size} to {model!r}"
        if known:
            return f"{head}: the log holds this request, but fewer times than it came now"
        nearest = max(
            self.recorded, key=lambda recorded: _similarity(recorded, model, messages), default=None
        )
        if nearest is None:
            return f"{head}: it holds no request at all"
        return f"{head}; the nearest is {nearest}, {_difference(nearest, model, messages)}"


class ReplayClient(Client):
    """A `Client` that answers from a log. Each of several equal requests gets the reply that was given at the same place in the
    call tree; if there is none, the first unused reply."""

    def __init__(self, tape: _Tape, model: str) -> None:
        self._tape = tape
        self.model = model

    @classmethod
    def from_log(cls, path: str | os.PathLike[str], *, run: str | None = None) -> ReplayClient:
        """Returns the client of the root's model, for a run without other models.

        Args:
            path: path of a log that `RLMLogger` wrote.
            run: id of a root's run; requests of other completions in the log are left out. None: all completions.

        Raises:
            LogError: the file is no log, or holds no such run.
        """
        return cls.clients(path, run=run)[0]

    @classmethod
    def clients(
        cls, path: str | os.PathLike[str], *, run: str | None = None
    ) -> tuple[ReplayClient, dict[str, ReplayClient]]:
        """Returns `client` and `other_clients` for an `RLM`: the root's model, and the models that the code may name.

        For arguments and errors see `from_log`.
        """
        events = read_log(path)
        tree = RunTree.of(events)
        root = _root(tree, run, os.fspath(path))
        runs = tree.runs if run is None else {node.start.run: node for node in root.walk()}
        windows = {node.start.model: node.start.context_length for node in runs.values()}
        known = {name: size for name, size in windows.items() if size is not None}
        tape = _Tape(os.fspath(path), list(_recorded(events, runs)), known)
        names = {name: entry.get("model", name) for name, entry in root.start.models.items()}
        others = {name: cls(tape, model) for name, model in names.items()}
        return cls(tape, names.get(root.start.model, root.start.model)), others

    async def complete(
        self, messages: Sequence[Message], *, sampling: SamplingArgs | None = None, model: str | None = None
    ) -> ModelReply:
        """Answers as the recorded model did; see `rlm.clients.base.Client.complete`.

        Raises:
            ReplayError: the log has no such request; the message shows how the nearest one differs.
            RLMError: the recorded call failed; the error has the same type and message.
        """
        try:
            return await self._tape.take(model or self.model, messages, sampling or {}).answer()
        except LimitError as error:
            self._tape.end = error
            raise

    async def context_length(self, model: str | None = None) -> int | None:
        """Returns the window in tokens; None if the log does not hold it."""
        return self._tape.windows.get(model or self.model)


def _root(tree: RunTree, run: str | None, path: str) -> RunNode:
    """Returns the root's run with an id; without an id the first run."""
    roots = {root.start.run: root for root in tree.roots}
    if not roots:
        raise LogError(f"{path} holds no run")
    if run is None:
        return tree.roots[0]
    if run not in roots:
        raise LogError(f"{path} holds no root's run {run!r}; its root's runs are {', '.join(roots)}")
    return roots[run]


def _recorded(events: Iterable[Event], runs: dict[str, RunNode]) -> Iterator[_Recorded]:
    """The requests of some runs, in the order in which they were answered.

    Args:
        events: of the log.
        runs: those runs, by id.
    """
    chats = {run.start.run: _Chat(run.start) for run in runs.values()}
    for event in events:
        run = runs.get(event.run)
        if run is None:
            continue
        match event:
            case Reply():
                yield _Recorded(event, _place(run, runs), chats[event.run].asked(event))
            case Subcall():
                yield _Recorded(event, _place_of_call(event, runs), None)
            case Turn() | Compaction():
                chats[event.run].go_on(event)


def _place(run: RunNode, runs: dict[str, RunNode]) -> tuple[int, ...]:
    """The place of a run in its call tree; empty for the root's run, and if the log does not hold its sub-call."""
    return () if run.call is None else _place_of_call(run.call, runs)


def _place_of_call(event: Subcall, runs: dict[str, RunNode]) -> tuple[int, ...]:
    run = runs[event.run]
    batch = run.batches.get(event.batch)
    return (*_place(run, runs), -1 if batch is None else batch.number, event.index)


class _Chat:
    """Rebuilds the messages of a run from its events."""

    def __init__(self, start: RunStart) -> None:
        self._history = History(start.system_prompt, start.first_message)
        self._start = start
        self._notes: ModelReply | None = None

    def asked(self, event: Reply) -> list[Message] | None:
        """Returns the messages of a reply's request, and adds the reply to the history; None if the rebuilt messages do not
        have the key of the request."""
        history = self._history
        compaction = event.purpose == "compaction"
        messages = Compactor.request(history) if compaction else history.messages
        if event.message is not None:
            if compaction:
                self._notes = ModelReply(event.content, event.model)
            elif messages[-1]["role"] == "user":
                history.add_reply(event.message)
        models = self._start.models
        model = models[event.model].get("model", event.model) if event.model in models else event.model
        return messages if request_key(model, messages, self._start.sampling) == event.request else None

    def go_on(self, event: Turn | Compaction) -> None:
        """Adds what a turn or a compaction changed in the history."""
        if isinstance(event, Compaction):
            self._history.compact(Compactor.notes(self._history, self._notes))
            self._notes = None
        elif event.final_answer is None and self._history.messages[-1]["role"] == "assistant":
            self._history.add_observation(event.observation)


def _error(kind: str, message: str) -> RLMError:
    """Returns an error of `rlm.errors` with a message; its other attributes are None."""
    found = getattr(errors, kind, RLMError)
    error: RLMError = found.__new__(found)
    names = inspect.signature(found.__init__).parameters
    for name in names.keys() - {"self", "message", "args", "kwargs"}:
        setattr(error, name, None)
    error.args = (message,)
    return error


def _similarity(recorded: _Recorded, model: str, messages: Sequence[Message]) -> tuple[float, ...]:
    """How similar a request of the log is to a new request, as a tuple: the greatest tuple belongs to the nearest request."""
    event = recorded.event
    if isinstance(event, Subcall):
        count, text, equal = 1, event.prompt_head, 0
    elif recorded.messages is None:
        return (-1, event.model == model)
    else:
        asked = recorded.messages
        count, text = len(asked), text_of(asked[-1]["content"])
        equal = next(
            (number for number, pair in enumerate(zip(asked, messages, strict=False)) if pair[0] != pair[1]),
            min(count, len(messages)),
        )
    ours = text_of(messages[-1]["content"]) if messages else ""
    ratio = difflib.SequenceMatcher(None, text[:200], ours[:200]).ratio()
    return (count == len(messages), event.model == model, equal, ratio)


def _difference(recorded: _Recorded, model: str, messages: Sequence[Message]) -> str:
    event, asked = recorded.event, recorded.messages
    if isinstance(event, Subcall):
        text = "".join(text_of(message["content"]) for message in messages)
        last = text_of(messages[-1]["content"]) if messages else ""
        if len(text) == event.prompt_chars and last.startswith(event.prompt_head):
            return "whose prompt has the same length and beginning: it differs further on, or in model or sampling"
        return (
            f"whose prompt had {event.prompt_chars} characters and began with {_excerpt(event.prompt_head, 0)}; this one "
            f"has {len(text)} and begins with {_excerpt(last, 0)}"
        )
    if asked is None:
        return "whose messages the log does not hold"
    for number, (theirs, ours) in enumerate(zip(asked, messages, strict=False), 1):
        if theirs != ours:
            a, b = text_of(theirs["content"]), text_of(ours["content"])
            at = next(
                (i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]),
                min(len(a), len(b)),
            )
            return (
                f"which differs first in message {number} ({theirs['role']}), character {at + 1}: {_excerpt(a, at)} in "
                f"the log, {_excerpt(b, at)} now"
            )
    if len(asked) != len(messages):
        return f"which had {len(asked)} messages"
    return f"with the same messages: model ({event.model!r} in the log, {model!r} now) or sampling arguments differ"


def _excerpt(text: str, at: int) -> str:
    start = max(0, at - _EXCERPT // 3)
    piece = text[start : start + _EXCERPT]
    return repr(("..." if start else "") + piece + ("..." if start + _EXCERPT < len(text) else ""))
