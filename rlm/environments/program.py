"""REPLs in programs that serve them over stdin and stdout: `docker run`, `ssh`, or a plain Python."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from rlm._checks import check_names, is_number
from rlm.environments.isolation import variables
from rlm.environments.worker_archive import archive_file
from rlm.errors import ConfigError, REPLError
from rlm.repl.interface import Environment, QueryHandler, SessionSpec
from rlm.repl.launcher import patience
from rlm.repl.links import Links
from rlm.repl.relay import Relay
from rlm.repl.session import Session
from rlm.repl.worker.process.processes import families

_ARCHIVE = "{archive}"
_END_PATIENCE = 2.0
"""Seconds that a program may take to end by itself after its stdin was closed."""
_SHORT_PATIENCE = 0.5
"""Seconds that a program that started no worker gets to end."""
_DRAIN = 0.5
"""Seconds for which output is still read after the end of a program. Its children may keep its stdout open."""
_MOST_ERRORS = 4096
"""Bytes of stderr that are kept, for the error."""


class ProgramEnvironment(Environment):
    """Runs each REPL in a program of its own, over the program's stdin and stdout. The program must start the worker archive
    with a CPython from 3.9 on.

    The program decides how well the code is isolated from this machine: a plain Python does not isolate it at all. A cell
    that is killed loses the namespace, because there are no checkpoints over a single stream.

    Args:
        command: the program and its arguments. "{archive}" in an argument becomes the path of the worker archive:
            `["docker", "run", "-i", "--rm", "--network=none", "-v", "{archive}:/worker.pyz:ro", "python:3.12-slim",
            "python", "/worker.pyz"]`.
        env: the environment variables of the program. None: PATH, HOME, the locale and the time zone of this process, but
            no API keys.
        start_timeout: seconds from the start of the program to the greeting of its worker.

    Raises:
        ConfigError: an argument does not fit.
    """

    def __init__(
        self,
        *,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        start_timeout: float = 60.0,
    ) -> None:
        if isinstance(command, str) or not command or not all(type(argument) is str for argument in command):
            raise ConfigError(f"command must be a list of a program and its arguments, not {command!r}")
        if not (is_number(start_timeout) and start_timeout > 0):
            raise ConfigError(f"start_timeout must be a positive number of seconds, not {start_timeout!r}")
        if env is not None:
            check_names("env", env)
            if not all(type(value) is str for value in env.values()):
                raise ConfigError("env must be a dict of variables and their values, all of them strings")
        self._command = list(command)
        self._env = None if env is None else dict(env)
        self._start_timeout = start_timeout

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> Session:
        """See `Environment.open`.

        Raises:
            REPLError: the program cannot be started, or starts no worker. The message has the exit status and what the
                program printed.
        """
        return await Session.open(self, spec, on_query)

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        """See `Place.connect`."""
        relay = Relay(control, work)
        program = await self._start(relay)
        size = sum(context.encoded_size for context in spec.contexts)
        failure = "started no worker in time"
        try:
            async with asyncio.timeout(self._start_timeout):
                await relay.greeting()
            failure = "did not take its contexts in time"
            async with asyncio.timeout(patience(size)):
                return await relay.open(program, spec, program.kill)
        except TimeoutError:
            await program.end()
            raise REPLError(
                f"the program {self._command[0]!r} {failure}{relay.noise}{program.errors}"
            ) from None
        except REPLError as error:
            await program.end()
            raise REPLError(f"{error} ({self._command[0]}{program.status}){program.errors}") from None
        except BaseException:
            program.abort()
            raise

    async def _start(self, relay: Relay) -> _Program:
        command = [argument.replace(_ARCHIVE, str(archive_file())) for argument in self._command]
        env = {**variables(), "HOME": os.environ.get("HOME", "/")} if self._env is None else self._env
        try:
            _, program = await asyncio.get_running_loop().subprocess_exec(
                lambda: _Program(relay), *command, env=env, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise REPLError(f"the program {command[0]!r} cannot be started: {error}") from error
        return program


class _Program(asyncio.SubprocessProtocol):
    """A program whose stdin and stdout are one stream: a `Link`. It never outlives its event loop.

    Args:
        relay: the protocol of the stream.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._errors = b""
        self._loop = asyncio.get_running_loop()
        self._aborted = asyncio.Event()
        self._gone = asyncio.Event()

    @property
    def status(self) -> str:
        """The exit status, for an error. Empty while the program runs."""
        status = self._transport.get_returncode()
        return "" if status is None else f", exit status {status}"

    @property
    def errors(self) -> str:
        """What the program wrote to stderr, for an error. Empty if there was nothing."""
        text = self._errors.decode("utf-8", "replace").strip()
        return f"\n{text}" if text else ""

    # the protocol of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        self._guard = self._loop.create_task(self._keep_guard())

    async def _keep_guard(self) -> None:
        """Kills the program if it does not end after its stdin was closed. A task, not a timer: the end of the event loop
        cancels it, and the program is killed before the loop closes."""
        try:
            await self._aborted.wait()
            await self._ends_within(_END_PATIENCE)
        finally:
            if not self._gone.is_set():
                self.kill()
                await self._ends_within(_SHORT_PATIENCE)

    async def _ends_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), seconds)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1:
            self._relay.data_received(data)
        else:
            self._errors = (self._errors + data)[-_MOST_ERRORS:]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.abort()  # without a stdout, no more frames can come

    def process_exited(self) -> None:
        self._loop.call_later(_DRAIN, self._transport.close)

    def pause_writing(self) -> None:
        self._relay.pause_writing()

    def resume_writing(self) -> None:
        self._relay.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._aborted.set()
        self._transport.close()
        self._relay.connection_lost(exc)

    # the link

    def write(self, data: bytes) -> None:
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        if not pipe.is_closing():
            pipe.write(data)

    def abort(self) -> None:
        """Closes stdin. The worker then ends its processes, and the program ends. A program that does not end is killed."""
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        if not pipe.is_closing():
            pipe.abort()
        self._aborted.set()

    async def end(self) -> None:
        """Waits a short time for the program to end by itself, then kills it."""
        for act in (self.abort, self.kill):
            act()
            await self._ends_within(_SHORT_PATIENCE)

    def kill(self) -> None:
        """Kills the program with all its descendants."""
        if self._transport.get_returncode() is None:
            _kill_tree(self._transport.get_pid())
        # The pipes, not the transport: its `close` may reap the program before the event loop's watcher of children does,
        # which then warns of an unknown child.
        for fd in (0, 1, 2):
            pipe = self._transport.get_pipe_transport(fd)
            assert pipe is not None
            pipe.close()
        self._aborted.set()

    def pause_reading(self) -> None:
        self._stdout.pause_reading()

    def resume_reading(self) -> None:
        self._stdout.resume_reading()

    @property
    def _stdout(self) -> asyncio.ReadTransport:
        pipe = self._transport.get_pipe_transport(1)
        assert isinstance(pipe, asyncio.ReadTransport)
        return pipe


def _kill_tree(pid: int) -> None:
    """Kills a process, its process group, and its descendants where the system lists them."""
    try:
        descendants = [member.pid for member in families([pid])[pid]]
    except OSError:  # there is no /proc
        descendants = []
    for kill, target in [(os.killpg, pid), *((os.kill, member) for member in descendants)]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)
