"""The sandbox: it separates the code of a REPL from the machine, on Linux.

The fork server enters the sandbox once: new namespaces for users, mounts, processes, the network, IPC and the host's name,
and a root directory with few files (`root_directory.py`).

Each worker gets a pid namespace inside that of the fork server, with a first process that does nothing. Before a worker gets
its job, it locks itself up for good: mounts of its own, no privileges, Landlock rules (`landlock.py`), and a filter of
system calls (`seccomp.py`).
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
from .root_directory import DEVICES, HOME, SCRATCH, RootDirectory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Sandbox:
    """The sandbox of a fork server.

    Args:
        settings: "visible", "hidden": see `RootDirectory`. "scratch_bytes", "processes": what each worker may use.
            "count": whether the fork server counts processes even where the kernel could limit them, for tests.

    Raises:
        OSError: this machine cannot have a sandbox. The message is the reason.
    """

    home = HOME

    def __init__(self, settings: dict[str, Any]) -> None:
        if not LINUX:
            raise OSError("a sandbox needs Linux")
        if libc is None:
            raise OSError("this Python has no ctypes")
        if syscalls.machine() is None:
            raise OSError(f"a sandbox needs a processor of type {' or '.join(syscalls.MACHINES)}")
        syscalls.declare_arguments()
        self._settings = settings
        self._root = RootDirectory(settings["visible"], settings["hidden"])
        self._landlock: Landlock | None = None
        self._filter = seccomp.program()
        self._pid_namespace = -1
        """A descriptor of the fork server's pid namespace."""
        self.features: dict[str, Any] = {}
        """Optional features that this kernel offers, known after `enter`. See `isolation.Probe`."""

    def unshare_namespaces(self) -> None:
        """Leaves the host's namespaces. The new pid namespace begins with the next fork.

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
        """Makes the sandbox around this process, and tries it. The process must be the first one of the new pid namespace.

        Args:
            root: an empty directory.

        Raises:
            OSError: the kernel refused a part of it.
        """
        # `fork` returns to this namespace by the descriptor. Only a /proc offers it, and the new root may have none.
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._namespace_maker = _NamespaceMaker(self._pid_namespace)
        syscalls.set_hostname(b"repl")
        self._root.enter(root)
        syscalls.give_up_root()
        version = syscalls.landlock_version()
        if version:
            self._landlock = Landlock(version, DEVICES)
        self._try_worker()

    def _try_worker(self) -> None:
        """Forks a worker that only locks itself up, to find out whether that works. Sets `features`."""
        read, write = os.pipe()

        def work() -> None:
            try:
                report = json.dumps(self.lock_worker())
            except BaseException as error:
                report = json.dumps(describe(error))
            os.write(write, report.encode())
            os._exit(0)

        first, worker = self.fork(work)
        os.close(write)
        report = json.loads(os.read(read, 4096) or '"a worker ended before it was locked up"')
        os.close(read)
        os.waitpid(worker, 0)
        os.kill(first, _signal.SIGKILL)
        os.waitpid(first, 0)
        if isinstance(report, str):
            raise OSError(report)
        self.features = report

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that must stay open in the fork server."""
        landlock = [] if self._landlock is None else self._landlock.descriptors
        return [self._pid_namespace, self._namespace_maker.descriptor, *landlock]

    @property
    def most_processes_to_count(self) -> int | None:
        """The most processes and threads that a worker may have, if the fork server must count them. None: it need not."""
        return self._settings["processes"] if self.features["process limit"] == "count" else None

    def fork(self, work: Callable[[], None]) -> tuple[int, int]:
        """Forks a worker into a new pid namespace.

        Args:
            work: runs in the worker. It must not return.

        Returns:
            The ids of the first process of the namespace and of the worker. When the first process ends, the kernel kills
            everything in the namespace.

        Raises:
            OSError: no process can be forked.
        """
        first = self._namespace_maker.make()
        try:
            pidfd = os.pidfd_open(first)
            try:
                syscalls.enter_namespace(pidfd, syscalls.NEW_PID)
            finally:
                os.close(pidfd)
            worker = os.fork()
            if worker == 0:
                work()
        except OSError:
            os.kill(first, _signal.SIGKILL)
            raise
        finally:
            syscalls.enter_namespace(self._pid_namespace, syscalls.NEW_PID)
        return first, worker

    def lock_worker(self) -> dict[str, Any]:
        """Locks up this process, which must be a worker. This cannot be undone.

        Returns:
            `features`.

        Raises:
            OSError: the kernel refused a part of it.
        """
        syscalls.unshare(syscalls.NEW_MOUNTS, "a mount namespace")
        processes = None if self._settings["count"] else self._settings["processes"]
        features = self._root.mount_for_worker(self._settings["scratch_bytes"], processes)
        syscalls.drop_capabilities()
        syscalls.set_no_new_privileges()
        if self._landlock is not None:
            self._landlock.restrict(SCRATCH)
        syscalls.install_filter(self._filter)
        return features


class _NamespaceMaker:
    """A process that makes pid namespaces, each with a first process that sleeps for ever.

    The first process shares the memory of the maker, so it costs next to nothing. It is a child of the fork server. The kernel
    reaps the orphans that become its children.

    Args:
        pid_namespace: a descriptor of the fork server's pid namespace, to which the maker returns each time.
    """

    def __init__(self, pid_namespace: int) -> None:
        self._stream, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                self._serve(theirs, pid_namespace)
            finally:
                os._exit(70)
        theirs.close()

    @property
    def descriptor(self) -> int:
        return self._stream.fileno()

    def make(self) -> int:
        """Makes a pid namespace.

        Returns:
            The id of its first process.

        Raises:
            OSError: there can be no more of them, or the maker is gone.
        """
        self._stream.sendall(b"\0")  # any byte asks for one
        answer = self._stream.recv(8)
        if len(answer) < 8:
            raise OSError(errno.ECHILD, "the process that makes process namespaces is gone")
        number = int.from_bytes(answer, "big", signed=True)
        if number < 0:
            raise OSError(-number, f"a process namespace: {os.strerror(-number)}")
        return number

    def _serve(self, stream: socket.socket, pid_namespace: int) -> None:
        """In the maker: answers each byte with a process id, or with the negative number of an error."""
        close_all_but([stream.fileno(), pid_namespace])
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        stack = ctypes.create_string_buffer(1 << 14)
        while stream.recv(1):
            try:
                syscalls.unshare(syscalls.NEW_PID, "a process namespace")
                try:
                    number = syscalls.fork_first_process(stack)
                finally:
                    syscalls.enter_namespace(pid_namespace, syscalls.NEW_PID)
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
    """Forks a process into a sandbox, by a double fork. The process becomes a child of this process if this process is a
    subreaper.

    Args:
        settings: see `Sandbox`.
        root: an empty directory.
        run: runs in the new process.

    Returns:
        The reason why there can be no sandbox. Empty: the process runs.
    """
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            os.close(read)
            sandbox = Sandbox(settings)
            sandbox.unshare_namespaces()
            if os.fork() == 0:
                sandbox.enter(root)
                os.write(write, b"\0")
                os.close(write)
                run(sandbox)
        except BaseException as error:
            try:
                os.write(write, describe(error).encode())
            except OSError:
                pass
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(middle, 0)
    report = b""
    while True:
        piece = os.read(read, 1 << 16)
        report += piece
        if not piece or report == b"\0":
            break
    os.close(read)
    if report == b"\0":
        return ""
    return report.decode("utf-8", "replace") or "the process ended before its sandbox was made"
