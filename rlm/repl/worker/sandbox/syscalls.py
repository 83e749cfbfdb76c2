"""System calls that Python does not offer, by ctypes. Each raises an OSError that names what was refused."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import time

from ..process.processes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MACHINES = {"x86_64": 0, "aarch64": 1}
"""The machines whose numbers of system calls we know, and where they stand in tables of them."""

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 1, 2, 4, 8
"""Of mounts; the same numbers for `mount` and for `set_mounts`."""
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_DETACH = 2
_HERE = -100
_EMPTY_PATH, _ALL_BELOW, _CLONE = 0x1000, 0x8000, 1

_PIVOT_ROOT = (155, 41)
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

_PIDFD_GET_INFO, _EXIT = 0xC040FF0B, 8

_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 22, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_AMBIENT_CLEAR = 4
_NO_ROOT = 0b11_1111
"""To be root gives nothing, to change from and to it neither, for good."""


def machine() -> int | None:
    """Where our machine's numbers stand in a table; None if we do not know them."""
    return MACHINES.get(os.uname().machine) if ctypes.sizeof(ctypes.c_void_p) == 8 else None


def prepare() -> None:
    """Declares what the functions take: once, and not in each process."""
    word, text, number = ctypes.c_ulong, ctypes.c_char_p, ctypes.c_int
    libc.mount.argtypes = [text, text, text, word, text]
    libc.syscall.argtypes = [ctypes.c_long, *[word] * 6]
    libc.syscall.restype = ctypes.c_long
    libc.unshare.argtypes = [number]
    libc.setns.argtypes = [number, number]
    libc.capset.argtypes = [ctypes.c_void_p, ctypes.c_void_p]


def _call(number: int, *arguments: int) -> int:
    result: int = libc.syscall(number, *arguments, *[0] * (6 - len(arguments)))
    return result


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


# namespaces


def unshare(flag: int, what: str) -> None:
    """Leaves a namespace for a new one; of processes, only those that are forked next do."""
    _check(libc.unshare(flag), what)


def enter(fd: int, flag: int) -> None:
    """Has the processes that are forked next live in a namespace."""
    _check(libc.setns(fd, flag), "entering a namespace")


def fork_sleeper(stack: Any) -> int:
    """Forks a child of our parent. It does nothing for ever, and shares our memory and descriptors: it has none of its own.

    Args:
        stack: a buffer for the stacks of all of them: they never come to use what is on it.
    """
    top = (ctypes.addressof(stack) + len(stack)) & ~0xF
    flags = 0x100 | 0x200 | 0x400 | 0x8000 | 17  # CLONE_VM, _FS, _FILES, _PARENT; SIGCHLD at its end
    sleep = ctypes.cast(libc.pause, ctypes.c_void_p)
    result: int = _check(libc.clone(sleep, ctypes.c_void_p(top), flags, None), "a process")
    return result


UNKNOWN_STATUS = 1 << 16
"""In place of a status that waitpid gives."""


def exit_status(pidfd: int) -> int:
    """How a process ended that is no child of ours, as waitpid gives it for those that are; `UNKNOWN_STATUS` before Linux 6.15.

    Args:
        pidfd: a descriptor of it, which says that it has.
    """
    for _ in range(20):
        info = bytearray(_EXIT.to_bytes(8, sys.byteorder) + bytes(56))
        try:
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        except OSError as error:
            if error.errno != errno.ESRCH:
                break
        if info[0] & _EXIT:
            return int.from_bytes(info[60:64], sys.byteorder)
        time.sleep(0.0002)  # it is being buried
    return UNKNOWN_STATUS


def set_hostname(name: bytes) -> None:
    _check(libc.sethostname(name, len(name)), "naming the host")


# mounts


def make_mounts_private() -> None:
    _check(libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None), "making mounts private")


def mount(kind: str, path: str, flags: int = 0, options: str = "") -> None:
    """Mounts a file system of its own, "tmpfs" or "proc"."""
    data = os.fsencode(options) or None
    _check(libc.mount(kind.encode(), os.fsencode(path), kind.encode(), flags, data), f"mounting {kind}")


def bind(source: str, path: str) -> None:
    """Makes a file, or a directory with all that is in it, visible at a path too."""
    flags = _BIND | _RECURSIVE
    _check(libc.mount(os.fsencode(source), os.fsencode(path), None, flags, None), f"binding {source}")


def remount(path: str, flags: int) -> None:
    """Changes the flags of one mount."""
    _check(libc.mount(None, os.fsencode(path), None, _REMOUNT | _BIND | flags, None), f"remounting {path}")


def set_mounts(path: str, flags: int) -> None:
    """Adds flags to a mount and to all below it. Linux 5.12."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    name = ctypes.c_char_p(os.fsencode(path))
    result = _call(
        _MOUNT_SETATTR, _HERE & _WORD, _address(name), _ALL_BELOW, ctypes.addressof(attributes), 32
    )
    _check(result, "making mounts read-only")


def hold_mount(path: str) -> int:
    """A descriptor of a copy of a mount and of all below it, for `drop_mount`."""
    name = ctypes.c_char_p(os.fsencode(path))
    flags = _CLONE | _ALL_BELOW | os.O_CLOEXEC
    return _check(_call(_OPEN_TREE, _HERE & _WORD, _address(name), flags), f"holding {path}")


def drop_mount(fd: int, path: str) -> None:
    """Puts a held mount at a path."""
    empty, name = ctypes.c_char_p(b""), ctypes.c_char_p(os.fsencode(path))
    result = _call(_MOVE_MOUNT, fd, _address(empty), _HERE & _WORD, _address(name), 4)
    _check(result, f"moving to {path}")


def unmount(path: str) -> None:
    _check(libc.umount2(os.fsencode(path), _DETACH), f"unmounting {path}")


def make_root(path: str) -> None:
    """Makes a mount the root of all paths, and everything else disappear."""
    os.chdir(path)
    here = ctypes.c_char_p(b".")
    number = _PIVOT_ROOT[machine() or 0]
    _check(_call(number, _address(here), _address(here)), "changing the root")
    unmount(".")
    os.chdir("/")


_WORD = (1 << 64) - 1


def _address(text: Any) -> int:
    return ctypes.cast(text, ctypes.c_void_p).value or 0


# privileges


def give_up_root() -> None:
    """From now on no program gets privileges by being run as root. Those that we have stay."""
    number = 0
    while libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    _check(libc.prctl(_PR_SET_SECUREBITS, _NO_ROOT, 0, 0, 0), "setting secure bits")
    libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)


_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
"""For `capset`: of this process, none."""


def drop_capabilities() -> None:
    _check(libc.capset(*_CAPABILITIES), "dropping capabilities")


def gain_no_privileges() -> None:
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def filter_calls(program: Any) -> None:
    """Has the kernel judge every system call from now on.

    Args:
        program: what `seccomp.program` made.
    """
    _check(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0), "seccomp")


# Landlock


def landlock_version() -> int:
    """Version of the kernel's Landlock; 0 if it has none."""
    return max(0, _call(_LANDLOCK_CREATE, 0, 0, 1))


def landlock_kinds(files: int, network: int, scopes: int) -> Any:
    """What `landlock_ruleset` takes: kinds of access."""
    return (ctypes.c_uint64 * (3 if scopes else 2 if network else 1))(*filter(None, (files, network, scopes)))


def landlock_ruleset(kinds: Any) -> int:
    """A descriptor of rules that allow nothing of these kinds."""
    return _check(_call(_LANDLOCK_CREATE, ctypes.addressof(kinds), len(kinds) * 8, 0), "Landlock")


def landlock_rule(access: int, fd: int) -> Any:
    """Allows something beneath a directory, or with a file, given as a descriptor."""
    return ctypes.create_string_buffer(access.to_bytes(8, "little") + fd.to_bytes(4, "little"), 12)


def landlock_add(rules: int, rule: Any) -> None:
    _check(_call(_LANDLOCK_ADD, rules, 1, ctypes.addressof(rule), 0), "a Landlock rule")


def landlock_restrict(rules: int) -> None:
    _check(_call(_LANDLOCK_RESTRICT, rules, 0), "Landlock")
