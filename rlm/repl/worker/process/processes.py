"""What a process must know of its children, parents and descriptors, and Python does not offer."""

# Few imports, as each costs memory in every REPL: no pathlib, no contextlib.
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
"""The kernel passes no more with one message."""
_HIGH_FD = 700
"""Our own descriptors lie from here on."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

try:
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    if LINUX:
        libc.prctl.argtypes = [
            ctypes.c_int,
            *[ctypes.c_ulong] * 4,
        ]  # once, and not in every call of every process
except (ImportError, OSError):  # a Python built without ctypes: the REPL works, orphans of orphans may escape
    libc = None


def prctl(option: int, value: int) -> None:
    if LINUX and libc is not None:
        libc.prctl(option, value, 0, 0, 0)


def fork_twice(hold: Callable[[], None]) -> int:
    """Forks a child that forks, and ends: then the second one is the child of whoever reaps orphans. Nearly no code of Python
    runs in the first one, as each page that it changed would have to be copied. There must be no threads of Python.

    Args:
        hold: what the first one does before it ends.

    Returns:
        The id of the first one, which is to be waited for; 0 in the second one.

    Raises:
        OSError: there can be no more processes.
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
        raise OSError("there can be no more processes")
    return middle


def become_subreaper(become: bool = True) -> None:
    """From now on the orphans among our descendants become our children, so that we can find and end them; or no more."""
    prctl(_PR_SET_CHILD_SUBREAPER, become)


def die_with_parent(parent: int, signum: int) -> None:
    """Has the kernel send us a signal when our parent dies. The parent must be single-threaded: the kernel watches
    the thread that forked us."""
    prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(0)


def reap() -> dict[int, int]:
    """Buries the children that have ended. Returns their statuses, as waitpid gives them, by process id."""
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
    """Ids of our direct children, zombies included; None where the system does not tell."""
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
                    continue  # it ended while we looked
    except OSError:
        return None
    return found


def threads_of_all() -> int:
    """Threads of the whole machine."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[3].partition("/")[2])


class Member:
    """A process among others."""

    __slots__ = ("pid", "resident", "threads")

    def __init__(self, pid: int, threads: int, resident: int) -> None:
        self.pid, self.threads = pid, threads
        self.resident = resident
        """Bytes of memory that it has mapped, shared or not."""


def families(roots: Iterable[int]) -> dict[int, list[Member]]:
    """Processes with all their descendants, except those of other `roots`, by the root's process id."""
    members: list[Member] = []
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as stat:
                    words = stat.read().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
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
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        pass  # it ended, or runs as somebody else


def end_children(
    spare: Iterable[int] = (), known: Iterable[int] = (), patience: float = 5.0
) -> dict[int, int]:
    """Kills and reaps our children, and theirs as they become ours, except `spare`. Where the system does not list
    children, those in `known` and their process groups.

    Returns:
        Wait status by process id of those that ended, spared ones included.
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
    """`socket.recv_fds`, with less to import, allocate and so to copy in each process."""
    data, extra, _, _ = stream.recvmsg(size, socket.CMSG_LEN(4 * most), flags)
    fds: list[int] = []
    for _, _, content in extra:
        fds += struct.unpack(f"{len(content) // 4}i", content)
    return data, fds


def move_high(fd: int) -> int:
    """A copy of a descriptor, out of the way of code that closes those it did not open."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:  # a low limit of open files
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def close_all_but(fds: Iterable[int]) -> None:
    """Closes every descriptor above 2 that is not named."""
    start = 3
    for fd in sorted(set(fds)):
        if fd >= start:
            os.closerange(start, fd)
            start = fd + 1
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(start, max(start, 1 << 20 if limit == resource.RLIM_INFINITY else limit))


def remove_tree(path: str) -> None:
    """Removes a directory and what is in it, as far as we may. Follows no links; others may be at it too."""
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
            pass  # not ours to remove, gone already, or nested beyond all sense
    try:
        os.rmdir(path)
    except OSError:
        pass
