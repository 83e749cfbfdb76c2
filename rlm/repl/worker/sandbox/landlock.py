"""Rules on files that hold beside the mounts: a second wall, where the kernel has Landlock."""

from __future__ import annotations

import os

from . import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MOVE, _TRUNCATE = 1 << 13, 1 << 14


class Landlock:
    """Rules for workers: everything that is visible may be read and executed, little may be written.

    Args:
        version: of the kernel's Landlock, from 1 on.
        usable: files that may be written, devices say.
    """

    def __init__(self, version: int, usable: Iterable[str]) -> None:
        self._every = _MOVE - 1
        if version >= 2:
            self._every |= _MOVE
        if version >= 3:
            self._every |= _TRUNCATE
        # Not the control of devices (version 5): there are none but those that have nothing to control.
        network = 0b11 if version >= 4 else 0
        scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals of the outside
        files = _WRITE_FILE | _READ_FILE | (self._every & _TRUNCATE)
        read = _EXECUTE | _READ_FILE | _READ_DIR
        # What is the same for all workers is made once.
        self._kinds = syscalls.landlock_kinds(self._every, network, scopes)
        self.descriptors: list[int] = []
        self._rules = [self._rule("/", read), *[self._rule(path, files) for path in usable]]

    def _rule(self, path: str, access: int) -> object:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.descriptors.append(fd)
        return syscalls.landlock_rule(access, fd)

    def restrict(self, writable: str) -> None:
        """Lays the rules on this process, for good.

        Args:
            writable: a directory in which everything is allowed.
        """
        ruleset = syscalls.landlock_ruleset(self._kinds)
        for rule in self._rules:
            syscalls.landlock_add(ruleset, rule)
        fd = os.open(writable, os.O_PATH | os.O_CLOEXEC)
        syscalls.landlock_add(ruleset, syscalls.landlock_rule(self._every, fd))
        syscalls.landlock_restrict(ruleset)
        os.close(fd)
        os.close(ruleset)
