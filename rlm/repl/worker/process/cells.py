"""Cells: pieces of code that run one after the other in one namespace."""

# ruff: noqa: SIM105 (no contextlib)

from __future__ import annotations
import __future__

import _ast
import io
import linecache
import os
import sys

from ..protocol.kinds import FromWorker
from .answer import Answer
from .contexts import UnreadableContextError, fetch_context, read_context
from .descriptions import bounded, describe, one_line, one_line_error, trace
from .namespace import make_functions
from .resources import seed_random
from .tools import ToolError, make_tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Any, Protocol

    from .channel import Channel
    from .interrupts import Interrupts

    class Interpreter(Protocol):
        """The interpreter that cells run in. A worker has one for its cells alone (`worker.Worker`). With `isolation="none"`
        the cells share the host's (`rlm.environments.inline`)."""

        pid: int
        """The id of the process that the namespace belongs to. In a child that a cell forked, `os.getpid()` is another one."""

        def make_main(self) -> dict[str, Any]:
            """Makes a `__main__` module. Returns its names, with `__builtins__`."""

        def prepare(self, names: dict[str, Any]) -> dict[str, Any]:
            """Called before a cell. Undoes changes of earlier cells to the interpreter, and begins to collect output.

            Returns:
                The names that the cell runs with: `names`, or a copy in a new `__main__` module.
            """

        def release_memory(self) -> None:
            """Frees the memory that is held back. An error can then be reported when the code has used up all other memory."""

        def restore(self) -> None:
            """Called after a cell. Undoes what the cell did to the interpreter."""

        def take_output(self) -> list[str | None]:
            """Takes what the cell printed on stdout and on stderr. None in place of a text: the supervisor has the text."""

        def flush(self) -> None:
            """Writes what was printed."""

        def keep(self, value: Any) -> None:
            """Keeps the value of a last expression as `_`."""


_FUTURES = 0
for _name in __future__.all_feature_names:
    _FUTURES |= getattr(__future__, _name).compiler_flag
_ONLY_AST = 0x400
_TOP_LEVEL_AWAIT = 0x2000
_COROUTINE = 0x80
_MOST_NAMES = 300
"""Names that a report to the host lists after a cell."""


class Cells:
    """One namespace, and the cells that run in it.

    Args:
        channel: the stream to the host, which sends cells and gets their results.
        interrupts: runs code of the user, which an interrupt may end.
        interpreter: where the cells run.
    """

    def __init__(self, channel: Channel, interrupts: Interrupts, interpreter: Interpreter) -> None:
        self._channel = channel
        self._interrupts = interrupts
        self._interpreter = interpreter
        self._flags = 0
        """Compiler flags of the `__future__` imports of earlier cells."""
        self.memory_bytes = 0
        """Memory limit of the process, for error texts."""

    def begin(self, spec: dict[str, Any], files: list[int]) -> bool:
        """Makes the namespace, or tells the host why it cannot be made.

        Args:
            spec: the host's message `ToWorker.OPEN`.
            files: descriptors of files with the first contexts. The other contexts are requested from the host.

        Returns:
            Whether the namespace was made.
        """
        self._answer = Answer(*spec["answer"])
        self._values: dict[str, Any] = {
            "history": spec["history"],
            **make_functions(self._channel.ask, self._locals),
            "ToolError": ToolError,
            **make_tools(self._channel.call, spec["tools"]),
        }
        self._names = self._interpreter.make_main()
        self._names["answer"] = self._answer.value
        error = self._add_contexts(spec["contexts"], files)
        if error is not None:
            self._channel.send(FromWorker.FAILED, {"error": error})
            return False
        if spec["seed"] is not None:
            seed_random(spec["seed"])
        return True

    def say_up(self) -> None:
        """Tells the host that cells can run."""
        self._channel.send(FromWorker.UP, {"python": sys.version.split()[0]})

    def step(self) -> bool:
        """Waits for the next task: runs a cell, or takes further contexts. Returns whether the task was a cell."""
        task = self._channel.next()
        if "code" in task:
            self._channel.send(FromWorker.DONE, self._run(task["id"], task["code"]))
            return True
        self._channel.send(FromWorker.EXTENDED, {"error": self._extend(task)})
        return False

    def _add_contexts(self, contexts: list[dict[str, Any]], files: list[int]) -> str | None:
        """Puts contexts, and tools that are values, into the namespace: all or none.

        Args:
            contexts: for each context its "names", "kind" and "size" in bytes. A context without names is a dict of names and
                values.
            files: see `begin`.

        Returns:
            The reason why they cannot be put there; None if they were.
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
            limit = f", {self.memory_bytes:,} bytes (limits: memory_bytes)" if self.memory_bytes else ""
            return f"the contexts do not fit in the memory of a REPL{limit}"
        except UnreadableContextError as error:
            return str(error)
        self._values.update(values)
        return None

    def _extend(self, task: dict[str, Any]) -> str | None:
        """Takes the contexts, history and answer of a further completion. Returns the reason if that fails, else None."""
        error = self._add_contexts(task["contexts"], [])
        if error is not None:
            return error
        if task["history"] is not None:
            self._values["history"] = task["history"]
        if task["fresh_answer"]:
            self._answer = Answer("", False)
            self._names["answer"] = self._answer.value
        return None

    # one cell

    def _run(self, number: int, code: str) -> dict[str, Any]:
        self._interrupts.reset()
        self._names = self._interpreter.prepare(self._names)
        self._names.update(self._values)
        result: dict[str, Any] = {"id": number, "status": "ok", "error": None, "value": "", "traceback": ""}
        if not self._interrupts.guard(lambda: self._run_guarded(number, code, result)):
            result.update(status="error", error="KeyboardInterrupt", traceback="KeyboardInterrupt\n")
        self._interpreter.release_memory()
        if os.getpid() != self._interpreter.pid:
            self._end_forked_child(result)
        if not self._interrupts.guard(lambda: self._answer.read(self._names)):
            self._answer.report = [*self._answer.report[:2], "reading `answer` took too long"]
        self._answer.restore(self._names)
        self._interpreter.restore()
        result["answer"] = self._answer.report
        result["locals"] = self._locals()
        result["printed"] = self._interpreter.take_output()
        return result

    def _run_guarded(self, number: int, code: str, result: dict[str, Any]) -> None:
        name = f"<cell {number}>"
        linecache.cache[name] = (len(code), None, io.StringIO(code, newline=None).readlines(), name)
        try:
            value = self._execute(name, code)
            if value is not None:
                self._interpreter.keep(value)
                result["value"] = bounded(repr(value)) + "\n"
        except SystemExit as stop:
            reason = stop.code
            result["status"] = "exit"
            result["error"] = "SystemExit" if reason is None else f"SystemExit: {one_line(reason)}"
            if reason is not None and not isinstance(reason, int):
                result["traceback"] = bounded(f"{reason}\n")
            result["code"] = 0 if reason is None else reason if isinstance(reason, int) else 1
        except BaseException as error:
            self._interpreter.release_memory()
            sys.settrace(None)
            result["status"] = "error"
            result["error"] = type(error).__name__
            try:
                result["error"] = one_line_error(error)
                result["traceback"] = bounded(trace(error))
            except MemoryError:  # for example, the traceback holds a million frames
                error.__traceback__ = None
                result["traceback"] = result["error"] + "\n"

    def _execute(self, name: str, code: str) -> Any:
        """Runs a cell. Returns the value of its last expression."""
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

    def _end_forked_child(self, result: dict[str, Any]) -> None:
        """Called in a child that the code forked, at the end of the cell. Ends the child."""
        try:
            sys.stderr.write(result["traceback"])
        except Exception:
            pass
        self._interpreter.flush()
        os._exit({"ok": 0, "exit": result.get("code", 0)}.get(result["status"], 1) & 0xFF)

    def _locals(self) -> dict[str, str]:
        """The names that the code has defined, and a short description of each value."""
        names: dict[str, str] = {}
        for name, value in list(self._names.items()):
            if type(name) is not str or name.startswith("__") or name in self._values or name == "answer":
                continue
            if len(names) >= _MOST_NAMES:
                names["..."] = f"{len(self._names) - len(self._values) - _MOST_NAMES:,} more"
                break
            names[name if len(name) <= 100 else name[:97] + "..."] = describe(value)
        return names
