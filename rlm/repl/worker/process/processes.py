"""Processes and descriptors: what the `os` module does not offer, or offers at a higher cost in memory."""

# Few imports, because each costs memory in every worker: no pathlib, no contextlib.
# ruff: noqa: PTH101, PTH106, PTH108, PTH114, PTH123, PTH208, SIM105

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import os
import resource
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LINUX = sys.platform == "linux"
MOST_FDS = 253
"""Descriptors that the kernel passes with one message, at most."""
_HIGH_FD = 700
"""The worker's own descriptors have this number or a higher one."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

try:
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    if LINUX:
        # Set once, so that ctypes need not convert the arguments of every call in every process anew.
        libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
except (ImportError, OSError):  # a Python without ctypes: the REPL works, but orphans may outlive it
    libc = None


def prctl(option: int, value: int) -> None:
    if LINUX and libc is not None:
        libc.prctl(option, value, 0, 0, 0)


def fork_twice(hold: Callable[[], None]) -> int:
    """The double fork: forks a middle process, which forks the child and ends. The child then has another parent, the subreaper
    that takes orphans. Almost no Python code runs in the middle process: each page that it changed would be copied. There must
    be no other Python threads.

    Args:
        hold: runs in the middle process before it ends.

    Returns:
        The id of the middle process, for which the caller must wait; 0 in the child.

    Raises:
        OSError: no process can be forked.
    """
    fork = ctypes.PyDLL(None).fork
    ctypes.pythonapi.PyOS_BeforeFork()
    middle: int = fork()
    if middle == 0:
        child = fork()
        if child == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            return 0
        try:
            if child > 0:
                hold()
        finally:
            os._exit(0)
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if middle < 0:
        raise OSError("no process can be forked")
    return middle


def become_subreaper(become: bool = True) -> None:
    """Sets whether orphans among the descendants of this process become its children, so that it can find and end them."""
    prctl(_PR_SET_CHILD_SUBREAPER, become)


def die_with_parent(parent: int, signum: int) -> None:
    """Asks the kernel for a signal to this process when its parent dies. The parent must have one thread only: the kernel
    watches the thread that forked this process."""
    prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(0)


def reap() -> dict[int, int]:
    """Reaps the children that have ended. Returns their statuses, as `os.waitpid` gives them, by process id."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended[pid] = status


def children() -> list[int] | None:
    """The ids of the direct children of this process, zombies included; None where there is no /proc."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        pass
    found = []
    try:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat") as stat:
                        if int(stat.read().rpartition(")")[2].split()[1]) == me:
                            found.append(int(name))
                except OSError:
                    continue  # it has ended meanwhile
    except OSError:
        return None
    return found


def threads_of_all() -> int:
    """The number of threads of the whole machine."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[2])


class Member:
    """A process of a family."""

    __slots__ = ("pid", "resident", "threads")

    def __init__(self, pid: int, threads: int, resident: int) -> None:
        self.pid, self.threads = pid, threads
        self.resident = resident
        """Bytes of memory that are resident, shared or not."""


def families(roots: Iterable[int]) -> dict[int, list[Member]]:
    """Each root with all its descendants, by the root's process id. A root below another root has a family of its own."""
    members: list[Member] = []
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    words = stat.read().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            parents[int(name)] = int(words[1])
            members.append(Member(int(name), int(words[17]), int(words[21]) * resource.getpagesize()))
    found: dict[int, list[Member]] = {root: [] for root in roots}
    for member in members:
        pid = member.pid
        while pid and pid not in found:
            pid = parents.get(pid, 0)
        if pid:
            found[pid].append(member)
    return found


def kill(pid: int, signum: int) -> None:
    """Sends a signal to a process, or to a process group (-id), if it still exists."""
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        pass  # it ended, or runs as another user


def end_children(
    spare: Iterable[int] = (), known: Iterable[int] = (), patience: float = 5.0
) -> dict[int, int]:
    """Kills and reaps the children of this process, and their descendants as these become children.

    Args:
        spare: ids of children that are not killed.
        known: ids of children whose process groups are killed where there is no /proc to list the children.
        patience: seconds after which the function stops trying.

    Returns:
        The statuses of all children that have ended, spared ones included, by process id.
    """
    spared = set(spare)
    ended: dict[int, int] = {}
    deadline = time.monotonic() + patience
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if not pid:
                break
            ended[pid] = status
        doomed = children()
        if doomed is None:
            doomed = [pid for pid in known if pid not in ended]
            for pid in doomed:
                kill(-pid, _signal.SIGKILL)
        doomed = [pid for pid in doomed if pid not in spared]
        if not doomed or time.monotonic() > deadline:
            return ended
        for pid in doomed:
            kill(pid, _signal.SIGKILL)
        time.sleep(0.0002)


def receive_fds(stream: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Does what `socket.recv_fds` does. It has fewer imports and objects, each of which costs every worker memory."""
    data, extra, _, _ = stream.recvmsg(size, socket.CMSG_LEN(4 * most), flags)
    fds: list[int] = []
    for _, _, content in extra:
        fds += struct.unpack(f"{len(content) // 4}i", content)
    return data, fds


def move_high(fd: int) -> int:
    """Copies a descriptor to a high number, out of reach of code that closes all low ones."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:  # the limit of open files is lower
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def close_all_but(fds: Iterable[int]) -> None:
    """Closes every descriptor above 2 that is not in `fds`."""
    start = 3
    for fd in sorted(set(fds)):
        if fd >= start:
            os.closerange(start, fd)
            start = fd + 1
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(start, max(start, 1 << 20 if limit == resource.RLIM_INFINITY else limit))


def remove_tree(path: str) -> None:
    """Removes a directory and the content that this user may remove. Follows no links. Another process may be removing it
    too."""
    try:
        os.rmdir(path)
        return
    except OSError:
        pass
    try:
        if os.path.islink(path):
            os.unlink(path)
            return
        os.chmod(path, 0o700)
        with os.scandir(path) as entries:
            found = list(entries)
    except OSError:
        return
    for entry in found:
        try:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
        except (OSError, RecursionError):
            pass  # not permitted, gone already, or nested too deep
    try:
        os.rmdir(path)
    except OSError:
        pass
