"""Rules on files that hold beside the mounts: a second wall, where the kernel has Landlock."""

from __future__ import annotations

import os

from . import linux

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_READ = EXECUTE | READ_FILE | READ_DIR


def make_rules(version: int, writable: list[str], usable: list[str]) -> int:
    """A descriptor of rules for a worker: everything that is visible may be read and executed, little may be written.

    Args:
        version: of the kernel's Landlock, from 1 on.
        writable: directories in which everything is allowed.
        usable: files that may be written, devices say.
    """
    every = (1 << 13) - 1
    if version >= 2:
        every |= 1 << 13  # moving files between directories
    if version >= 3:
        every |= _TRUNCATE
    # Not the control of devices (version 5): there are none but those that have nothing to control.
    network = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0  # abstract sockets and signals of the outside
    rules = linux.landlock_ruleset(every, network, scopes)
    files = WRITE_FILE | READ_FILE | (_TRUNCATE if version >= 3 else 0)
    wanted = [("/", _READ), *[(path, every) for path in writable], *[(path, files) for path in usable]]
    for path, access in wanted:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        linux.landlock_allow(rules, access, fd)
        os.close(fd)
    return rules
