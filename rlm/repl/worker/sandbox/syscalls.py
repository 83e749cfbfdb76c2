"""System calls that Python does not offer, by ctypes. If the kernel refuses, a function raises an OSError that says what."""

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
"""Machines whose system calls are known here, and the index of each in the tables of their numbers."""

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 1, 2, 4, 8
"""Flags of mounts, for `mount` and for `add_mount_flags`."""
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
_DETACH = 2
_AT_FDCWD = -100
_EMPTY_PATH, _ALL_BELOW, _CLONE = 0x1000, 0x8000, 1

_PIVOT_ROOT = (155, 41)
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446

_PIDFD_GET_INFO, _EXIT = 0xC040FF0B, 8

_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 22, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_AMBIENT_CLEAR = 4
_NO_ROOT = 0b11_1111
"""Secure bits, locked: neither the user id 0 nor a change from or to it gives privileges."""


def machine() -> int | None:
    """The index of this machine in the tables of system calls. None: its system calls are not known here."""
    return MACHINES.get(os.uname().machine) if ctypes.sizeof(ctypes.c_void_p) == 8 else None


def declare_arguments() -> None:
    """Declares the argument types of the C functions. Called once, before the forks, so that the workers share them."""
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
    """Moves this process to a new namespace. A new pid namespace gets only the next children of this process.

    Args:
        what: a name for the namespace in the error.
    """
    _check(libc.unshare(flag), what)


def enter_namespace(fd: int, flag: int) -> None:
    """Moves the next children of this process to an existing pid namespace.

    Args:
        fd: a descriptor of the namespace, or a pidfd of a process in it.
    """
    _check(libc.setns(fd, flag), "entering a namespace")


def fork_first_process(stack: Any) -> int:
    """Forks a process that sleeps for ever. It shares the memory and the descriptors of this process, and is a child of this
    process's parent.

    Args:
        stack: a buffer for its stack. All these processes can have the same one, as they never return from `pause`.
    """
    top = (ctypes.addressof(stack) + len(stack)) & ~0xF
    flags = 0x100 | 0x200 | 0x400 | 0x8000 | 17  # CLONE_VM, _FS, _FILES, _PARENT, and SIGCHLD
    sleep = ctypes.cast(libc.pause, ctypes.c_void_p)
    result: int = _check(libc.clone(sleep, ctypes.c_void_p(top), flags, None), "a process")
    return result


UNKNOWN_STATUS = 1 << 16
"""Stands for the status of a process when it cannot be known."""


def exit_status(pidfd: int) -> int:
    """The status of a process that has ended and is no child of this process, as `os.waitpid` gives it for children.

    Args:
        pidfd: a pidfd of the process.

    Returns:
        `UNKNOWN_STATUS` before Linux 6.15.
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
        time.sleep(0.0002)  # its parent has not reaped it yet
    return UNKNOWN_STATUS


def set_hostname(name: bytes) -> None:
    _check(libc.sethostname(name, len(name)), "naming the host")


# mounts


def make_mounts_private() -> None:
    _check(libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None), "making mounts private")


def mount(kind: str, path: str, flags: int = 0, options: str = "") -> None:
    """Mounts a new file system: "tmpfs" or "proc"."""
    data = os.fsencode(options) or None
    _check(libc.mount(kind.encode(), os.fsencode(path), kind.encode(), flags, data), f"mounting {kind}")


def bind(source: str, path: str) -> None:
    """Makes a file, or a directory with all mounts below it, visible at a second path."""
    flags = _BIND | _RECURSIVE
    _check(libc.mount(os.fsencode(source), os.fsencode(path), None, flags, None), f"binding {source}")


def remount(path: str, flags: int) -> None:
    """Changes the flags of one mount."""
    _check(libc.mount(None, os.fsencode(path), None, _REMOUNT | _BIND | flags, None), f"remounting {path}")


def add_mount_flags(path: str, flags: int) -> None:
    """Adds flags to a mount and to all mounts below it. Needs Linux 5.12."""
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    name = ctypes.c_char_p(os.fsencode(path))
    result = _call(
        _MOUNT_SETATTR, _AT_FDCWD & _WORD, _address(name), _ALL_BELOW, ctypes.addressof(attributes), 32
    )
    _check(result, "making mounts read-only")


def copy_mount(path: str) -> int:
    """Copies a mount and all mounts below it. Returns a descriptor of the copy, for `attach_mount`."""
    name = ctypes.c_char_p(os.fsencode(path))
    flags = _CLONE | _ALL_BELOW | os.O_CLOEXEC
    return _check(_call(_OPEN_TREE, _AT_FDCWD & _WORD, _address(name), flags), f"copying the mount of {path}")


def attach_mount(fd: int, path: str) -> None:
    """Attaches a copied mount at a path."""
    empty, name = ctypes.c_char_p(b""), ctypes.c_char_p(os.fsencode(path))
    result = _call(_MOVE_MOUNT, fd, _address(empty), _AT_FDCWD & _WORD, _address(name), 4)
    _check(result, f"attaching a mount at {path}")


def unmount(path: str) -> None:
    _check(libc.umount2(os.fsencode(path), _DETACH), f"unmounting {path}")


def make_root(path: str) -> None:
    """Makes a mount the root directory. All other mounts disappear."""
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
    """Takes away the privileges that programs get because root runs them. This process keeps its capabilities."""
    number = 0
    while libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    _check(libc.prctl(_PR_SET_SECUREBITS, _NO_ROOT, 0, 0, 0), "setting secure bits")
    libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)


_CAPABILITIES = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
"""The arguments of `capset`: this process, and no capabilities."""


def drop_capabilities() -> None:
    _check(libc.capset(*_CAPABILITIES), "dropping capabilities")


def set_no_new_privileges() -> None:
    """Set-user-id bits and capabilities of programs give this process no privileges any more. `install_filter` needs this."""
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def install_filter(program: Any) -> None:
    """Installs a filter: the kernel runs it at each system call of this process and its descendants.

    Args:
        program: made by `seccomp.program`.
    """
    _check(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(program), 0, 0), "seccomp")


# Landlock


def landlock_version() -> int:
    """The version of the kernel's Landlock. 0: it has none."""
    return max(0, _call(_LANDLOCK_CREATE, 0, 0, 1))


def landlock_attributes(files: int, network: int, scopes: int) -> Any:
    """The kinds of access that a ruleset handles, as `landlock_ruleset` takes them.

    Args:
        files, network, scopes: bits of `struct landlock_ruleset_attr`. 0: the kernel does not know this field.
    """
    return (ctypes.c_uint64 * (3 if scopes else 2 if network else 1))(*filter(None, (files, network, scopes)))


def landlock_ruleset(attributes: Any) -> int:
    """Makes a ruleset, which allows none of these kinds of access. Returns its descriptor."""
    return _check(_call(_LANDLOCK_CREATE, ctypes.addressof(attributes), len(attributes) * 8, 0), "Landlock")


def landlock_rule(access: int, fd: int) -> Any:
    """A rule that allows kinds of access to a file, or below a directory, given as a descriptor."""
    return ctypes.create_string_buffer(access.to_bytes(8, "little") + fd.to_bytes(4, "little"), 12)


def landlock_add(ruleset: int, rule: Any) -> None:
    _check(_call(_LANDLOCK_ADD, ruleset, 1, ctypes.addressof(rule), 0), "a Landlock rule")


def landlock_restrict(ruleset: int) -> None:
    """Applies a ruleset to this process and its descendants, for good."""
    _check(_call(_LANDLOCK_RESTRICT, ruleset, 0), "Landlock")
