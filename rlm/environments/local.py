"""REPLs on this machine, each with processes of its own, forked from one warm parent."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Literal, get_args

from rlm.context import Context
from rlm.environments.base import QueryHandler, SessionSpec
from rlm.environments.remote import Links
from rlm.environments.session import Session
from rlm.errors import ConfigError, REPLError

Isolation = Literal["sandbox", "process", "none"]

_MOST_CONTEXTS = 250
"""The kernel passes 253 descriptors with one message."""
_QUICK = 1 << 20
"""Bytes that are encoded on the event loop rather than in a thread."""


class LocalEnvironment:
    """Runs each REPL in processes of its own on this machine.

    Args:
        isolation: what stands between the code and this machine. "process": a process tree of its own with limits on
            memory, processor time, file size and open files, and without the host's environment variables. It does
            not close off files, sockets and other processes of the same user; `docs/repl.md` has the list.
            "sandbox" and "none" come with a later version.

    Raises:
        ConfigError: the isolation is not known or not built yet, or this system cannot run local REPLs.
    """

    def __init__(self, *, isolation: Isolation = "process") -> None:
        if isolation not in get_args(Isolation):
            known = ", ".join(repr(name) for name in get_args(Isolation))
            raise ConfigError(f"there is no isolation {isolation!r}; there are {known}")
        if isolation != "process":
            raise ConfigError(f'isolation={isolation!r} comes with a later version; use "process"')
        if sys.platform == "win32":
            raise ConfigError('local REPLs need Linux or macOS; use environment="docker"')
        self.isolation = isolation

    async def open(self, spec: SessionSpec, on_query: QueryHandler) -> Session:
        """See `Environment.open`."""
        if len(spec.contexts) > _MOST_CONTEXTS:
            raise REPLError(
                f"a REPL can have {_MOST_CONTEXTS} contexts, and this one has {len(spec.contexts)}"
            )
        return await Session.open(self, spec, on_query)

    async def connect(self, control: asyncio.Protocol, work: asyncio.Protocol, spec: SessionSpec) -> Links:
        """See `remote.Place.connect`."""
        from rlm.environments.warm import shared

        ours, theirs = zip(socket.socketpair(), socket.socketpair(), strict=True)
        links: list[asyncio.Transport] = []
        try:
            with theirs[0], theirs[1]:
                fds = [end.fileno() for end in theirs] + [await _file(context) for context in spec.contexts]
                if shared.running:
                    shared.start(fds, spec.max_output_chars)
                else:
                    await asyncio.to_thread(shared.start, fds, spec.max_output_chars)
            loop = asyncio.get_running_loop()
            for end, protocol in zip(ours, (control, work), strict=True):
                link, _ = await loop.create_unix_connection(lambda protocol=protocol: protocol, sock=end)  # type: ignore[misc]
                links.append(link)
        except BaseException as error:
            for link in links:  # which closes its socket when the loop no longer watches it
                link.abort()
            for end in ours[len(links) :]:
                end.close()
            if isinstance(error, OSError):
                raise REPLError(f"the REPL could not be started: {error}") from error
            raise
        return Links(*links)

    def kill(self) -> None:
        """See `remote.Place.kill`."""
        from rlm.environments.warm import shared

        shared.kill()


async def _file(context: Context) -> int:
    if context.has_file or context.encoded_size < _QUICK:
        return context.file()
    return await asyncio.to_thread(context.file)
