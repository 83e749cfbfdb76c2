"""REPLs in the host's own process: `isolation="none"`.

Cells run in a thread. A second thread does the work of a supervisor: it interrupts the cell while that runs Python code. The
host's side, `rlm.repl.session`, is the same as for all other places.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import os
import select
import socket
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from rlm.repl.worker.process.cells import Cells
from rlm.repl.worker.process.channel import Channel
from rlm.repl.worker.process.interrupts import Interrupts
from rlm.repl.worker.process.output import Output
from rlm.repl.worker.protocol.frames import Frames, decode, encode, pack
from rlm.repl.worker.protocol.kinds import FromSupervisor, ToSupervisor

_MOST_OUTPUT = 1 << 20
"""The most characters that are kept of each stream: they are part of a message, which has a limit."""
_KILLED = "it could not be stopped, and goes on in its thread"


class _StreamEnded(BaseException):
    """The host has closed the stream, or ends the REPL."""


class _ThreadChannel(Channel):
    """A channel. When its stream ends, it ends the thread but not the process."""

    def _on_stream_ended(self) -> NoReturn:
        raise _StreamEnded


class _Tap(io.TextIOBase):
    """Replaces a stream of `sys`. Text from a thread of cells goes to the output of its cell, all other text to the stream.

    Args:
        name: "stdout" or "stderr".
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.beneath: TextIO = getattr(sys, name)
        self.outputs: dict[int, Output] = {}
        """The outputs of cells, by the ident of their thread."""

    def write(self, text: str) -> int:
        output = self.outputs.get(threading.get_ident())
        if output is None:
            return self.beneath.write(text)
        output.add(text)
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() not in self.outputs:
            self.beneath.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


_lock = threading.Lock()
"""Held while a stream of `sys` is replaced."""


def _tap(name: str, output: Output) -> None:
    """Sends what this thread prints to a stream of `sys` to `output`, from now on."""
    with _lock:
        tap = getattr(sys, name)
        if not isinstance(tap, _Tap):
            tap = _Tap(name)
            setattr(sys, name, tap)
        tap.outputs[threading.get_ident()] = output


def _untap(name: str) -> None:
    """Sends what this thread prints to the stream again, from now on."""
    with _lock:
        tap = getattr(sys, name)
        if isinstance(tap, _Tap):
            tap.outputs.pop(threading.get_ident(), None)
            if not tap.outputs:
                setattr(sys, name, tap.beneath)


class _Quitter:
    """`exit` or `quit` of a cell. Python's own ones would close the standard input of the host."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"Use {self._name}() to end the cell"

    def __call__(self, code: object = None) -> NoReturn:
        raise SystemExit(code)


def _input(prompt: object = "", /) -> NoReturn:
    """`input` of a cell. Its standard input is empty, as in a worker."""
    print(prompt, end="")
    raise EOFError("EOF when reading a line")


_OWN_BUILTINS: dict[str, Any] = {"exit": _Quitter("exit"), "quit": _Quitter("quit"), "input": _input}


class _ThreadInterrupts(Interrupts):
    """Interrupts of cells in the thread that makes this object. Another thread calls `interrupt`."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._thread = threading.get_ident()
        self._lock = threading.Lock()

    def guard(self, action: Callable[[], None]) -> bool:
        try:
            try:
                self._channel.deferred = False
                self._channel.guarded = False
                self._armed = True
                action()
            finally:
                self._disarm()
        except KeyboardInterrupt:
            self._disarm()
            return False
        return True

    def _disarm(self) -> None:
        """Raises no more interrupts, and withdraws one that was requested before."""
        with self._lock:
            self._armed = False
            self._channel.guarded = True
            self._raise(None)

    def interrupt(self) -> None:
        """Raises KeyboardInterrupt in the cell as soon as it runs Python code again."""
        with self._lock:
            first, self._strikes = self._strikes == 0, self._strikes + 1
            if not self._armed or self._channel.waiting or (first and self._channel.raised):
                return  # where the cell waits for a reply, `ToWorker.VOID` raises the KeyboardInterrupt
            if self._channel.guarded:
                self._channel.deferred = True
                return
            self._raise(KeyboardInterrupt)

    def _raise(self, error: type[BaseException] | None) -> None:
        """Makes Python raise an exception in the thread of the cell. None: withdraws a requested exception."""
        what = ctypes.py_object(error) if error is not None else None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), what)


class _CellThread:
    """Runs cells in a thread. It is also the `cells.Interpreter` of its cells. The interpreter is the host's own, so this
    class changes only `sys.stdout` and `sys.stderr`, and only during a cell.

    Args:
        max_output: characters that are kept of each stream of a cell.
    """

    def __init__(self, max_output: int) -> None:
        self.pid = os.getpid()
        self._interrupts: _ThreadInterrupts | None = None
        most = min(max_output, _MOST_OUTPUT)
        self.outputs = [Output(most), Output(most)]
        self._builtins = {**vars(builtins), **_OWN_BUILTINS}

    def serve(self, link: int, files: list[int]) -> None:
        """Serves cells in this thread until the host ends the REPL.

        Args:
            link: a descriptor of the stream to the host.
            files: descriptors of files with the encoded contexts.
        """
        channel = _ThreadChannel(link)
        self._interrupts = _ThreadInterrupts(channel)
        try:
            cells = Cells(channel, self._interrupts, self)
            if cells.begin(channel.next(), files):
                cells.say_up()
                while True:
                    cells.step()
        except _StreamEnded:
            pass
        finally:
            for fd in (link, *files):
                os.close(fd)

    def interrupt(self) -> None:
        """Interrupts the running cell. Called from another thread."""
        if self._interrupts is not None:
            self._interrupts.interrupt()

    # for its cells: see `cells.Interpreter`

    def make_main(self) -> dict[str, Any]:
        names = types.ModuleType("__main__").__dict__
        names["__builtins__"] = self._builtins
        return names

    def prepare(self, names: dict[str, Any]) -> dict[str, Any]:
        for name, output in zip(("stdout", "stderr"), self.outputs, strict=True):
            _tap(name, output)
        return names

    def release_memory(self) -> None:
        """Nothing to do: no memory is held back in the host."""

    def restore(self) -> None:
        for name in ("stdout", "stderr"):
            _untap(name)

    def take_output(self) -> list[str | None]:
        return [output.take() for output in self.outputs]

    def flush(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()

    def keep(self, value: Any) -> None:
        self._builtins["_"] = value


class _ThreadSupervisor:
    """Does for a thread of cells what a supervisor does for a worker.

    Args:
        cells: runs the cells.
        control: the supervisor's stream from and to the host.
        work: the worker's stream from and to the host.
        thread: the thread of `cells`.
    """

    def __init__(
        self, cells: _CellThread, control: socket.socket, work: socket.socket, thread: threading.Thread
    ) -> None:
        self._cells, self._control, self._work, self._thread = cells, control, work, thread
        self._frames = Frames()
        self._grace = 0.0
        self._strikes = 0

    def serve(self) -> None:
        """Carries out the host's orders until the host ends the REPL."""
        try:
            while True:
                ready = select.select([self._control], [], [], self._grace / 2 if self._strikes else None)[0]
                if not ready:
                    self._step()
                    continue
                self._frames.feed(self._control.recv(1 << 16) or pack(ToSupervisor.END))
                while (frame := self._frames.next()) is not None:
                    self._on_order(*frame)
        except (_StreamEnded, OSError):
            pass
        finally:
            with self._control, self._work:
                self._work.shutdown(socket.SHUT_RDWR)  # ends the thread of the cells, and tells the host
            self._interrupt_until_ended()

    def _interrupt_until_ended(self) -> None:
        """Interrupts the cell until its thread has ended. One interrupt is not enough: it does nothing while the thread reads a
        reply."""
        patience = 0.01
        while self._thread.is_alive():
            self._cells.interrupt()
            self._thread.join(patience)
            patience = min(2 * patience, 1.0)

    def _on_order(self, kind: bytes, payload: bytes) -> None:
        if kind == ToSupervisor.END or kind == ToSupervisor.KILL:
            raise _StreamEnded
        if kind == ToSupervisor.PING:
            self._say(FromSupervisor.PONG, {})
        elif kind == ToSupervisor.TAKE:
            self._strikes = 0
            self._say(FromSupervisor.PRINTED, {"printed": ["", ""]})
        else:
            self._grace = decode(payload)["grace"]
            self._strikes = 0
            self._step()

    def _step(self) -> None:
        """Takes the next step of an interrupt: two strikes, then a report that the cell was killed. Its thread runs on."""
        if self._strikes < 2:
            self._strikes += 1
            self._cells.interrupt()
            return
        printed = [output.take() for output in self._cells.outputs]
        self._say(FromSupervisor.ENDED, {"status": "killed", "manner": _KILLED, "printed": printed})
        raise _StreamEnded

    def _say(self, kind: bytes, message: object) -> None:
        self._control.sendall(pack(kind, encode(message)))


class Inline:
    """Starts REPLs as threads of this process. It replaces `rlm.environments.fork_server`, which starts them as processes."""

    def start(self, fds: Sequence[int], settings: Mapping[str, int]) -> Callable[[], None]:
        """See `ForkServer.start`."""
        control, work, *files = map(os.dup, fds)
        cells = _CellThread(settings["max_output"])
        thread = threading.Thread(target=cells.serve, args=(work, files), name="rlm-repl", daemon=True)
        supervisor = _ThreadSupervisor(
            cells, socket.socket(fileno=control), socket.socket(fileno=os.dup(work)), thread
        )
        thread.start()
        threading.Thread(target=supervisor.serve, name="rlm-repl-supervisor", daemon=True).start()
        return lambda: None  # a thread cannot be ended by force
