"""Landlock rules on files: a second wall beside the read-only mounts, where the kernel has Landlock."""

from __future__ import annotations

import os

from . import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14


class Landlock:
    """The rules for workers: all visible files can be read and executed, and few can be written.

    Args:
        version: the version of the kernel's Landlock, from 1 on.
        writable: files that workers can write to, such as devices.
    """

    def __init__(self, version: int, writable: Iterable[str]) -> None:
        self._all_access = _REFER - 1
        if version >= 2:
            self._all_access |= _REFER
        if version >= 3:
            self._all_access |= _TRUNCATE
        # ioctl on devices (version 5) stays allowed: the visible devices have nothing to control.
        network = 0b11 if version >= 4 else 0  # bind and connect
        scopes = 0b11 if version >= 6 else 0  # abstract sockets of, and signals to, processes outside
        read = _EXECUTE | _READ_FILE | _READ_DIR
        write = _WRITE_FILE | _READ_FILE | (self._all_access & _TRUNCATE)
        # Made once: these are the same for all workers.
        self._attributes = syscalls.landlock_attributes(self._all_access, network, scopes)
        self.descriptors: list[int] = []
        """Descriptors that the rules refer to, which must stay open."""
        self._rules = [self._rule("/", read), *[self._rule(path, write) for path in writable]]

    def _rule(self, path: str, access: int) -> object:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.descriptors.append(fd)
        return syscalls.landlock_rule(access, fd)

    def restrict(self, scratch: str) -> None:
        """Applies the rules to this process and its descendants. This cannot be undone.

        Args:
            scratch: a directory in which everything is allowed.

        Raises:
            OSError: the kernel refused.
        """
        ruleset = syscalls.landlock_ruleset(self._attributes)
        for rule in self._rules:
            syscalls.landlock_add(ruleset, rule)
        fd = os.open(scratch, os.O_PATH | os.O_CLOEXEC)
        syscalls.landlock_add(ruleset, syscalls.landlock_rule(self._all_access, fd))
        syscalls.landlock_restrict(ruleset)
        os.close(fd)
        os.close(ruleset)
