"""The process in which the code runs: the worker."""

# ruff: noqa: PTH102, PTH103, SIM105 (no pathlib, no contextlib)

from __future__ import annotations
import __future__

import _ast
import _signal  # type: ignore[import-not-found]
import builtins
import gc
import io
import linecache
import mmap
import os
import sys
import types

from ..protocol.kinds import FromWorker
from .answer import Answer
from .channel import Channel
from .contexts import ContextError, fetch_context, read_context
from .descriptions import bounded, describe, one_line, one_line_error, trace
from .namespace import make_functions
from .processes import MOST_FDS, libc, move_high
from .resources import hold_memory, seed_random, set_limits
from .streams import SHARED, STREAMS
from .tools import ToolError, make_tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .checkpoint import Checkpoints

_FUTURES = 0
for _name in __future__.all_feature_names:
    _FUTURES |= getattr(__future__, _name).compiler_flag
_ONLY_AST = 0x400
_TOP_LEVEL_AWAIT = 0x2000
_COROUTINE = 0x80
_MOST_NAMES = 300
_CHECKPOINT_WORTH = 10
"""A checkpoint that is not asked for after each cell takes at most one part in so many of the time: where many REPLs share few
cores, it takes longer, and so there are fewer."""


class Worker:
    """Runs cells in one namespace."""

    def __init__(self, stdout: int, stderr: int, memory: Any) -> None:
        """
        Args:
            stdout, stderr: descriptors of the pipes to the supervisor.
            memory: the memory shared with it, of `streams.SHARED` bytes.
        """
        self._maps: list[Any] = []
        self._attach(stdout, stderr, memory)
        self._pid = os.getpid()
        self._armed = False
        self._strikes = 0
        self._flags = 0
        self._reserve: Any = None
        """Memory that is given back when the code has used up all: Python needs some to say so."""

    def _attach(self, stdout: int, stderr: int, memory: Any) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        self._spare = [move_high(fd) for fd in (null, stdout, stderr)]
        os.close(null)
        self._renew_descriptors()
        # Never closed: it would close the number that its descriptor had, which may be somebody else's by now.
        self._maps.append(memory)
        STREAMS.connect(memory, *self._spare[1:])

    @property
    def descriptors(self) -> list[int]:
        """Those that it holds, besides 0, 1 and 2."""
        return self._spare

    def run(self, checkpoints: Checkpoints, folder: str) -> None:
        """Serves cells in this process, which was forked for it, until it ends.

        Args:
            checkpoints: bring the descriptors of the stream to the host and of files with the encoded contexts, and keep
                what there is after each cell.
            folder: the directory to make and to work in.
        """
        os.setsid()
        sys.argv = [""]
        os.register_at_fork(before=self._flush, after_in_child=self._after_fork)
        link, *files = checkpoints.enlist(MOST_FDS)
        try:
            os.mkdir(folder, 0o700)
        except FileNotFoundError:  # whoever cleans up old files may have taken the one that it is in
            os.makedirs(folder, 0o700)
        os.chdir(folder)
        self.connect(link)
        spec = self.receive()
        set_limits(spec["limits"])
        self._memory = spec["limits"]["memory_bytes"]
        self.begin(spec["history"], spec["answer"], spec["tools"])
        error = self._take(spec["contexts"], files)
        if error is not None:
            self._channel.send(FromWorker.FAILED, {"error": error})
            return
        for fd in files:
            os.close(fd)
        if spec["seed"] is not None:
            seed_random(spec["seed"])
        gc.enable()
        checkpoints.most_bytes = spec["checkpoint_bytes"]
        self._say_up()
        done = 0
        while True:
            ran = self.step()
            done += 1
            if ran and spec["checkpoint_after"]:
                patience = max(spec["checkpoint_after"], _CHECKPOINT_WORTH * checkpoints.seconds)
                if not self._channel.idle(patience):
                    continue
            fds = checkpoints.take(done, self._spare)
            while fds is not None:
                self._rise(fds, checkpoints.enlist(1)[0])
                fds = checkpoints.take(done, self._spare)

    def _say_up(self) -> None:
        self._channel.send(FromWorker.UP, {"python": sys.version.split()[0]})

    def _rise(self, fds: list[int], link: int) -> None:
        """We were a checkpoint, and go on in the place of a worker that has ended.

        Args:
            fds: what `Checkpoints.take` returned.
            link: a descriptor of the stream to the host.
        """
        stdout, stderr, memory = fds
        self._pid = os.getpid()
        self._attach(stdout, stderr, mmap.mmap(memory, SHARED))
        self._channel.join(move_high(link))
        for fd in (*fds, link):
            os.close(fd)
        self._say_up()

    def connect(self, link: int) -> None:
        """Takes the stream to the host."""
        self._channel = Channel(move_high(link))
        os.close(link)

    def begin(self, history: list[Any], answer: list[Any], tools: list[Any]) -> None:
        """Makes the namespace."""
        self._answer = Answer(*answer)
        self._values: dict[str, Any] = {
            "history": history,
            **make_functions(self._channel.ask, self._locals),
            "ToolError": ToolError,
            **make_tools(self._channel.call, tools),
        }
        self._names = self._make_names()
        self._names["__builtins__"] = builtins
        self._names["answer"] = self._answer.value

    def _make_names(self) -> dict[str, Any]:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        return main.__dict__

    def _take(self, contexts: list[dict[str, Any]], files: list[int]) -> str | None:
        """Takes contexts and other values into the namespace, all or none.

        Args:
            contexts: what the host says of each: the names that it gets, its kind and its bytes. Without names it is a
                dict of names and values.
            files: descriptors of files with the first of them. The host is asked for the others.

        Returns:
            What is wrong with them.
        """
        values: dict[str, Any] = {}
        try:
            for number, context in enumerate(contexts):
                kind = context["kind"]
                if number < len(files):
                    value = read_context(kind, files[number])
                else:
                    value = fetch_context(kind, number, context["size"], self._channel)
                values.update(dict.fromkeys(context["names"], value) if context["names"] else value)
        except MemoryError:
            return f"the contexts do not fit in the memory of a REPL, {self._memory:,} bytes (limits: memory_bytes)"
        except ContextError as error:
            return str(error)
        self._values.update(values)
        return None

    def receive(self) -> dict[str, Any]:
        """Waits for what is to be done next: the namespace, then cell after cell."""
        return self._channel.next()

    def step(self) -> bool:
        """Waits for a cell and runs it, or takes further contexts. Returns whether it was a cell."""
        task = self.receive()
        if "code" in task:
            self._channel.send(FromWorker.DONE, self._run_cell(task["id"], task["code"]))
            return True
        self._channel.send(FromWorker.EXTENDED, {"error": self._extend(task)})
        return False

    def _extend(self, task: dict[str, Any]) -> str | None:
        """Takes what a further completion brings. Returns what is wrong with it."""
        error = self._take(task["contexts"], [])
        if error is not None:
            return error
        if task["history"] is not None:
            self._values["history"] = task["history"]
        if task["fresh_answer"]:
            self._answer = Answer("", False)
            self._names["answer"] = self._answer.value
        return None

    def end(self) -> None:
        """Gives its descriptors up."""
        self._channel.leave()
        for fd in self._spare:
            os.close(fd)

    def _renew_descriptors(self) -> None:
        for fd, spare in enumerate(self._spare):
            os.dup2(spare, fd)
            os.set_blocking(fd, True)  # some programs leave a pipe otherwise

    def _after_fork(self) -> None:
        self._channel.leave()
        STREAMS.leave()
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)

    def on_interrupt(self, *_: object) -> None:
        """SIGINT: from the supervisor, at most twice in a cell, or raised by the code itself."""
        if not self._armed or self._strikes >= 2:
            return
        if self._strikes == 0 and self._channel.told:
            self._strikes = 1  # the news of it was quicker
            return
        if self._channel.guarded:
            self._channel.deferred = True
            return
        self._strikes += 1
        self._channel.guarded, self._channel.waiting = self._channel.waiting, False
        raise KeyboardInterrupt

    # one cell

    def _run_cell(self, number: int, code: str) -> dict[str, Any]:
        self._prepare()
        result: dict[str, Any] = {"id": number, "status": "ok", "error": None, "value": "", "traceback": ""}
        if not self._guard(lambda: self._perform(number, code, result)):
            result.update(status="error", error="KeyboardInterrupt", traceback="KeyboardInterrupt\n")
        self._reserve = None
        if os.getpid() != self._pid:
            self._end_child(result)
        if not self._guard(lambda: self._answer.read(self._names)):
            self._answer.report = [*self._answer.report[:2], "reading `answer` took too long"]
        self._answer.restore(self._names)
        self._restore()
        result["answer"] = self._answer.report
        result["locals"] = self._locals()
        result["printed"] = self._printed()
        return result

    def _guard(self, action: Callable[[], None]) -> bool:
        """Runs code of the user, in which an interrupt may come. Returns whether it came through to us."""
        try:
            try:
                self._channel.deferred = False
                self._channel.guarded = False
                self._armed = True
                action()
            finally:
                self._armed = False
                self._channel.guarded = True
        except KeyboardInterrupt:
            self._armed = False
            self._channel.guarded = True
            return False
        return True

    def _prepare(self) -> None:
        """Sets right what the last cell may have bent."""
        self._reserve = hold_memory()
        self._strikes = 0
        self._channel.told = False
        self._renew_descriptors()
        STREAMS.renew()
        _signal.signal(_signal.SIGINT, self.on_interrupt)
        if sys.modules.get("__main__") is None or sys.modules["__main__"].__dict__ is not self._names:
            main = types.ModuleType("__main__")
            main.__dict__.update(self._names)
            sys.modules["__main__"] = main
            self._names = main.__dict__
        self._names.update(self._values)

    def _restore(self) -> None:
        """Takes back our process after a cell."""
        sys.settrace(None)
        sys.setprofile(None)
        if sys.getrecursionlimit() < 500:
            sys.setrecursionlimit(1000)
        if libc is not None:
            libc.fflush(None)

    def _printed(self) -> list[str | None]:
        """What was printed in the cell, as `Ending` has it."""
        return STREAMS.take()

    def _flush(self) -> None:
        STREAMS.spill()
        if libc is not None:
            libc.fflush(None)

    def _perform(self, number: int, code: str, result: dict[str, Any]) -> None:
        name = f"<cell {number}>"
        linecache.cache[name] = (len(code), None, io.StringIO(code, newline=None).readlines(), name)
        try:
            value = self._execute(name, code)
            if value is not None:
                self._keep(value)
                result["value"] = bounded(repr(value)) + "\n"
        except SystemExit as stop:
            reason = stop.code
            result["status"] = "exit"
            result["error"] = "SystemExit" if reason is None else f"SystemExit: {one_line(reason)}"
            if reason is not None and not isinstance(reason, int):
                result["traceback"] = bounded(f"{reason}\n")
            result["code"] = 0 if reason is None else reason if isinstance(reason, int) else 1
        except BaseException as error:
            self._reserve = None
            sys.settrace(None)
            result["status"] = "error"
            result["error"] = type(error).__name__
            try:
                result["error"] = one_line_error(error)
                result["traceback"] = bounded(trace(error))
            except MemoryError:  # it holds a million frames, say
                error.__traceback__ = None
                result["traceback"] = result["error"] + "\n"

    def _keep(self, value: Any) -> None:
        """Keeps the value of a last expression as `_`."""
        builtins._ = value  # type: ignore[attr-defined]

    def _execute(self, name: str, code: str) -> Any:
        """Runs a cell; returns the value of its last expression."""
        tree = compile(code, name, "exec", _ONLY_AST | _TOP_LEVEL_AWAIT | self._flags, True)
        last = None
        if tree.body and type(tree.body[-1]).__name__ == "Expr":
            last = _ast.Expression(tree.body.pop().value)
        if tree.body:
            body = compile(tree, name, "exec", _TOP_LEVEL_AWAIT | self._flags, True)
            self._flags |= body.co_flags & _FUTURES
            self._evaluate(body)
        if last is None:
            return None
        return self._evaluate(compile(last, name, "eval", _TOP_LEVEL_AWAIT | self._flags, True))

    def _evaluate(self, code: types.CodeType) -> Any:
        value = eval(code, self._names)
        if code.co_flags & _COROUTINE:
            import asyncio

            value = asyncio.run(value)
        return value

    def _end_child(self, result: dict[str, Any]) -> None:
        """The code forked, and its child came to the end of the cell."""
        text = result["traceback"]
        try:
            sys.stderr.write(text)
        except Exception:
            pass
        self._flush()
        os._exit({"ok": 0, "exit": result.get("code", 0)}.get(result["status"], 1) & 0xFF)

    def _locals(self) -> dict[str, str]:
        names: dict[str, str] = {}
        for name, value in list(self._names.items()):
            if type(name) is not str or name.startswith("__") or name in self._values or name == "answer":
                continue
            if len(names) >= _MOST_NAMES:
                names["..."] = f"{len(self._names) - len(self._values) - _MOST_NAMES:,} more"
                break
            names[name if len(name) <= 100 else name[:97] + "..."] = describe(value)
        return names
