"""REPLs on this machine, each with processes of its own, forked from a fork server."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rlm.context import Context
from rlm.environments.isolation import (
    PROCESSES,
    SCRATCH_BYTES,
    Isolation,
    IsolationWarning,
    SandboxSettings,
    probe,
)
from rlm.errors import ConfigError, REPLError
from rlm.repl.interface import Environment, QueryHandler, SessionSpec
from rlm.repl.links import Links, Resume
from rlm.repl.repl_settings import REPLSettings
from rlm.repl.session import Session

if TYPE_CHECKING:
    from rlm.environments.fork_server import ForkServer

EndSupervisor = Callable[[], None]
"""See `Links.end_supervisor`."""

_MOST_ON_LOOP = 1 << 20
"""Bytes up to which a context is encoded on the event loop rather than in a thread."""

_READ = 1 << 18
"""Bytes that are read from a stream at once."""
_shared = threading.local()
"""Has the buffer of a thread's streams, `view`. An event loop reads into it and hands the data over in one step."""

_warning = threading.Lock()
"""Taken by the first warning that there is no sandbox, and never released."""


class LocalEnvironment(Environment):
    """Runs each REPL in processes of its own on this machine.

    Args:
        isolation: what keeps the code from this machine; `docs/repl.md` has the list.
            "sandbox": the code sees a Python installation and a scratch directory of its own; no network, and no other file
            or process. Needs Linux 5.12 and a kernel that allows user namespaces. If the sandbox cannot be made, the code
            runs as "process", and an `IsolationWarning` says so once.
            "sandbox!": the same, with an error in place of the fall-back.
            "process": a process tree with limits on memory, processor time, file size and open files, and without the
            host's environment variables. The code can use files, sockets and other processes as the user can.
            "none": a thread of this process, for debugging and for code that needs live objects of the host. The code can
            do everything that the host can. Only time is limited, and only while the thread runs Python code.
        readable: in a sandbox, further directories and files that the code can read, at the same paths.
        hidden: in a sandbox, further installed packages that the code cannot import or read: names of distributions or of
            modules. `verifiers`, `rlm-train` and packages that require them are always hidden.
        scratch_bytes: in a sandbox, the size of the scratch directory in bytes. It is in memory.
        processes: in a sandbox, the processes and threads that a REPL may have at once. It may have 300 more while it has
            started fewer than 300.

    Raises:
        ConfigError: the isolation does not exist; a setting does not fit, or needs another isolation; this system cannot run
            local REPLs; or it allows no sandbox, and the isolation is "sandbox!".
    """

    def __init__(
        self,
        *,
        isolation: Isolation = "sandbox",
        readable: Sequence[str | Path] = (),
        hidden: Sequence[str] = (),
        scratch_bytes: int = SCRATCH_BYTES,
        processes: int = PROCESSES,
    ) -> None:
        if isolation not in get_args(Isolation):
            known = ", ".join(repr(name) for name in get_args(Isolation))
            raise ConfigError(f"there is no isolation {isolation!r}; there are {known}")
        if sys.platform == "win32":
            raise ConfigError(
                'local REPLs need Linux or macOS: run the code in a container with environment="program"'
            )
        self.isolation: Isolation = isolation
        """As given; "process" after a sandbox could not be made."""
        sandbox = SandboxSettings.of(readable, hidden, scratch_bytes, processes)
        self._sandbox: SandboxSettings | None = sandbox
        if isolation in ("process", "none"):
            if sandbox != SandboxSettings():
                raise ConfigError(
                    'readable, hidden, scratch_bytes and processes are settings of a sandbox: use isolation="sandbox"'
                )
            self._sandbox = None
        elif isolation == "sandbox!" and probe().level != "sandbox":
            raise ConfigError(
                f'this machine allows no sandbox: {probe().reason}. isolation="process" runs without one'
            )

    def check(self, settings: REPLSettings) -> None:
        """See `Environment.check`.

        Raises:
            ConfigError: `limits` are given with isolation="none", which has no limits.
        """
        if settings.limits and self.isolation == "none":
            raise ConfigError(
                f'isolation="none" has no limits of resources, and these are given: {dict(settings.limits)}'
            )

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> Session:
        """See `Environment.open`.

        Raises:
            ConfigError: see `check`.
            REPLError: the REPL could not be started.
        """
        self.check(spec.settings)
        return await Session.open(self, spec, on_query)

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        """See `Place.connect`."""
        settings = spec.settings.for_supervisor()

        async def start(ends: list[int]) -> EndSupervisor:
            return await self._start([*ends, *[await _file(context) for context in spec.contexts]], settings)

        if self.isolation == "none":
            return await _join(control, work, start, None)

        async def resume(control: asyncio.Protocol, work: asyncio.Protocol, checkpoint: int) -> Links:
            from rlm.environments.fork_server import fork_server

            server = fork_server(self._sandbox)

            async def start(ends: list[int]) -> EndSupervisor:
                return await _ask(server, ends, lambda fds: server.resume(fds, settings, checkpoint))

            return await _join(control, work, start, resume)

        return await _join(control, work, start, resume)

    async def _start(self, fds: Sequence[int], settings: Mapping[str, int]) -> EndSupervisor:
        if self.isolation == "none":
            from rlm.environments.inline import Inline

            return Inline().start(fds, settings)
        from rlm.environments.fork_server import NoSandboxError, fork_server

        server = fork_server(self._sandbox)
        try:
            return await _ask(server, fds, lambda fds: server.start(fds, settings))
        except NoSandboxError as error:
            if self.isolation == "sandbox!":
                raise REPLError(f"the sandbox could not be made: {error}") from error
            self._fall_back(str(error))
            return await self._start(fds, settings)

    def _fall_back(self, reason: str) -> None:
        self.isolation, self._sandbox = "process", None
        if _warning.acquire(blocking=False):
            warnings.warn(
                f"there is no sandbox for the code of models: {reason}. It runs as processes of yours, which can use your "
                'files and the network (isolation="process"). docs/repl.md says what a sandbox needs; isolation="sandbox!" '
                "refuses to do without, and a container keeps the code off too",
                IsolationWarning,
                stacklevel=2,
            )


async def _ask(
    server: ForkServer, fds: Sequence[int], action: Callable[[Sequence[int]], EndSupervisor]
) -> EndSupervisor:
    """Asks something of a fork server, in a thread if the fork server has to be started first.

    Args:
        fds: descriptors that the fork server gets. The thread has copies: if the caller is cancelled, it does not wait for the
            thread, and closes its own.
        action: called with the descriptors.
    """
    if server.running:
        return action(fds)
    copies: list[int] = []

    def act() -> EndSupervisor:
        try:
            return action(copies)
        finally:
            for copy in copies:
                os.close(copy)

    try:
        copies.extend(map(os.dup, fds))
    except OSError:
        for copy in copies:
            os.close(copy)
        raise
    asked = asyncio.ensure_future(asyncio.to_thread(act))
    asked.add_done_callback(
        lambda asked: asked.cancelled() or asked.exception()
    )  # read, also if the caller is gone
    return await asyncio.shield(asked)


async def _join(
    control: asyncio.Protocol,
    work: asyncio.Protocol,
    start: Callable[[list[int]], Awaitable[EndSupervisor]],
    resume: Resume | None,
) -> Links:
    """Makes the two streams of a REPL.

    Args:
        control, work: the protocols of the host's ends.
        start: starts a REPL with the other ends.
        resume: see `Links`.

    Raises:
        REPLError: the REPL could not be started.
    """
    ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
    links: list[asyncio.Transport] = []
    try:
        with theirs[0], theirs[1]:
            end_supervisor = await start([end.fileno() for end in theirs])
        loop = asyncio.get_running_loop()
        for end, protocol in zip(ours, (control, work), strict=True):
            reader = _BufferedReader(protocol)
            link, _ = await loop.create_unix_connection(lambda reader=reader: reader, sock=end)  # type: ignore[misc]
            links.append(link)
    except BaseException as error:
        for link in links:  # closes the socket once the loop no longer watches it
            link.abort()
        for end in ours[len(links) :]:
            end.close()
        if isinstance(error, OSError):
            raise REPLError(f"the REPL could not be started: {error}") from error
        raise
    return Links(links[0], links[1], end_supervisor, resume)


class _BufferedReader(asyncio.BufferedProtocol):
    """Reads a stream for a protocol, into a buffer that all streams of the thread share. A transport alone allocates 256 KiB
    for each read. The C library may get this memory from the kernel and return it each time, which can be a third of the
    host's time for a cell.

    Args:
        protocol: gets the data and all other events.
    """

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        if not hasattr(_shared, "view"):
            _shared.view = memoryview(bytearray(_READ))
        self._view: memoryview = _shared.view

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._view[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


async def _file(context: Context) -> int:
    if context.has_file or context.encoded_size < _MOST_ON_LOOP:
        return context.file()
    return await asyncio.to_thread(context.file)
