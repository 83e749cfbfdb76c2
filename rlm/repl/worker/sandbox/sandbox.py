"""The sandbox: what stands between the code of a REPL and the machine, on Linux.

The warm parent enters it once: namespaces of its own for users, mounts, processes, the network, IPC and the host's name,
and a root directory with little in it (`view.py`). Each worker gets a namespace of processes beneath it, whose first
process does nothing but hold it and reap, and then, before anything of a cell runs, its own mounts and rules that nobody
takes back: no privileges, a filter of system calls (`seccomp.py`), Landlock (`landlock.py`).
"""

# ruff: noqa: SIM105 (no contextlib)

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import errno
import json
import os
import socket

from ..process.processes import LINUX, close_all_but, libc
from . import seccomp, syscalls
from .landlock import Landlock
from .root_directory import DEVICES, HOME, SCRATCH, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Sandbox:
    """The sandbox of a warm parent.

    Args:
        settings: "visible" and "hidden", as `View` has them; "scratch_bytes", "processes": what each worker may use;
            "count": whether to count processes, though the kernel could limit them.

    Raises:
        OSError: this machine cannot have one.
    """

    home = HOME

    def __init__(self, settings: dict[str, Any]) -> None:
        if not LINUX:
            raise OSError("a sandbox needs Linux")
        if libc is None:
            raise OSError("this Python has no ctypes")
        if syscalls.machine() is None:
            raise OSError(f"its system calls are known on {' and '.join(syscalls.MACHINES)} only")
        syscalls.prepare()
        self._settings = settings
        self._view = View(settings["visible"], settings["hidden"])
        self._landlock: Landlock | None = None
        self._filter = seccomp.program()
        self._own = -1
        self.features: dict[str, Any] = {}
        """What it has that not every kernel offers, once it is made: as `isolation.Probe` has it."""

    def leave(self) -> None:
        """Leaves the host's namespaces; that of processes from the next fork on.

        Raises:
            OSError: the kernel refused one.
        """
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.NEW_USER, "a user namespace")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            try:
                _write(f"/proc/self/{name}", text)
            except OSError as error:
                raise OSError(error.errno, f"the users of a user namespace: {error.strerror}") from error
        syscalls.unshare(syscalls.NEW_MOUNTS, "a mount namespace")
        syscalls.unshare(syscalls.NEW_NET, "a network namespace")
        syscalls.unshare(syscalls.NEW_IPC, "an IPC namespace")
        syscalls.unshare(syscalls.NEW_UTS, "a UTS namespace")
        syscalls.unshare(syscalls.NEW_PID, "a process namespace")

    def enter(self, root: str) -> None:
        """Makes the sandbox, in the first process of the new namespace.

        Args:
            root: an empty directory.

        Raises:
            OSError: the kernel refused a part of it.
        """
        # The descriptor is the way back from each worker's namespace, and can be had nowhere but in a /proc.
        self._own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._holder = _Holder(self._own)
        syscalls.set_hostname(b"repl")
        self._view.enter(root)
        syscalls.give_up_root()
        version = syscalls.landlock_version()
        if version:
            self._landlock = Landlock(version, DEVICES)
        self._try()

    def _try(self) -> None:
        """Locks a worker up that has nothing to do, to know that it can be done."""
        news, theirs = os.pipe()

        def work() -> None:
            try:
                said = json.dumps(self.lock_worker())
            except BaseException as error:
                said = json.dumps(describe(error))
            os.write(theirs, said.encode())
            os._exit(0)

        first, worker = self.fork(work)
        os.close(theirs)
        said = json.loads(os.read(news, 4096) or '"a worker ended before it was locked up"')
        os.close(news)
        os.waitpid(worker, 0)
        os.kill(first, _signal.SIGKILL)
        os.waitpid(first, 0)
        if isinstance(said, str):
            raise OSError(said)
        self.features = said

    @property
    def descriptors(self) -> list[int]:
        """Those that it needs."""
        landlock = [] if self._landlock is None else self._landlock.descriptors
        return [self._own, self._holder.descriptor, *landlock]

    @property
    def most_processes_to_count(self) -> int | None:
        """The most processes and threads that a worker may have, where that is for its parent to see to."""
        return self._settings["processes"] if self.features["process limit"] == "count" else None

    def fork(self, work: Callable[[], None]) -> tuple[int, int]:
        """Forks a worker into a namespace of its own.

        Args:
            work: what it does; does not return.

        Returns:
            The ids of the first process of the namespace, whose end is the end of all, and of the worker.

        Raises:
            OSError: there can be no more processes.
        """
        first = self._holder.hold()
        try:
            pidfd = os.pidfd_open(first)
            try:
                syscalls.enter(pidfd, syscalls.NEW_PID)
            finally:
                os.close(pidfd)
            worker = os.fork()
            if worker == 0:
                work()
        except OSError:
            os.kill(first, _signal.SIGKILL)
            raise
        finally:
            syscalls.enter(self._own, syscalls.NEW_PID)
        return first, worker

    def lock_worker(self) -> dict[str, Any]:
        """Locks a worker up, for good.

        Returns:
            Its `features`.

        Raises:
            OSError: the kernel refused a part of it.
        """
        syscalls.unshare(syscalls.NEW_MOUNTS, "a mount namespace")
        processes = None if self._settings["count"] else self._settings["processes"]
        features = self._view.furnish(self._settings["scratch_bytes"], processes)
        syscalls.drop_capabilities()
        syscalls.gain_no_privileges()
        if self._landlock is not None:
            self._landlock.restrict(SCRATCH)
        syscalls.filter_calls(self._filter)
        return features


class _Holder:
    """A process that makes namespaces of processes, each with a first process that does nothing but hold it: its orphans
    are reaped by the kernel. The first processes are children of ours, and share the memory of this one.

    Args:
        own: a descriptor of our namespace, which is its too: by the time that it runs, the root may be another, without /proc.
    """

    def __init__(self, own: int) -> None:
        self._stream, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                self._serve(theirs, own)
            finally:
                os._exit(70)
        theirs.close()

    @property
    def descriptor(self) -> int:
        return self._stream.fileno()

    def hold(self) -> int:
        """
        Returns:
            The id of the first process of a new namespace.

        Raises:
            OSError: there can be no more.
        """
        self._stream.sendall(b"n")
        answer = self._stream.recv(8)
        if len(answer) < 8:
            raise OSError(errno.ECHILD, "whoever makes namespaces of processes is gone")
        number = int.from_bytes(answer, "big", signed=True)
        if number < 0:
            raise OSError(-number, f"a namespace of processes: {os.strerror(-number)}")
        return number

    def _serve(self, stream: socket.socket, own: int) -> None:
        close_all_but([stream.fileno(), own])
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        stack = ctypes.create_string_buffer(1 << 14)
        while stream.recv(1):
            try:
                syscalls.unshare(syscalls.NEW_PID, "a process namespace")
                try:
                    number = syscalls.fork_sleeper(stack)
                finally:
                    syscalls.enter(own, syscalls.NEW_PID)
            except OSError as error:
                number = -(error.errno or errno.EINVAL)
            stream.sendall(number.to_bytes(8, "big", signed=True))


def describe(error: BaseException) -> str:
    """An error in words, without its number."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def fork_into_sandbox(settings: dict[str, Any], root: str, run: Callable[[Sandbox], None]) -> str:
    """Forks a process that lives in a sandbox. It becomes our child if we are a subreaper.

    Args:
        settings: as `Sandbox` has them.
        root: an empty directory.
        run: what it does.

    Returns:
        Why that could not be; empty if it is there.
    """
    news, theirs = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            os.close(news)
            sandbox = Sandbox(settings)
            sandbox.leave()
            if os.fork() == 0:
                sandbox.enter(root)
                os.write(theirs, b"\0")
                os.close(theirs)
                run(sandbox)
        except BaseException as error:
            try:
                os.write(theirs, describe(error).encode())
            except OSError:
                pass
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(middle, 0)
    said = b""
    while True:
        piece = os.read(news, 1 << 16)
        said += piece
        if not piece or said == b"\0":
            break
    os.close(news)
    return "" if said == b"\0" else said.decode("utf-8", "replace") or "it ended before it began"
