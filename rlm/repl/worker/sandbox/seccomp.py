"""The filter of system calls for sandboxed workers and their descendants: a seccomp program.

The kernel answers a call of `REFUSED` with EPERM and a call of `ABSENT` with ENOSYS. It checks the arguments of `clone`,
`socketpair` and `fcntl`. It allows all other calls. A call by the numbers of another architecture kills the process."""

from __future__ import annotations

import ctypes
import struct

from .syscalls import machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EPERM, _ENOSYS = 1, 38

REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # mounts, and which files are visible
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "lookup_dcookie": (212, 18),
    # sockets; socketpair has a rule of its own
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # memory and messages that outlive processes, or that no resource limit counts
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # the state of the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "query_module": (178, None),
    "get_kernel_syms": (177, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    # large parts of the kernel that few programs need
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
}
"""Calls that fail with EPERM, with their numbers on x86_64 and on aarch64. None: there is no such call."""

ABSENT: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),  # libc then uses clone, whose arguments a filter can see
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),  # memory that no resource limit counts
    "memfd_secret": (447, 447),
    # the machine has few for each user, and they report accesses of other processes to visible files
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_setup": (206, 0),  # the machine has few for all users together
}
"""Calls that fail with ENOSYS, as on a kernel that does not have them. Programs then use other calls."""

_CLONE, _SOCKETPAIR, _FCNTL = (56, 220), (53, 199), (72, 25)
_NEW_NAMESPACES = 0x7E020000
_ARCHITECTURES = 0xC000003E, 0xC00000B7
_X32 = 0x40000000
_AF_UNIX, _SOCK_STREAM, _SOCK_KIND = 1, 1, 0xF
_F_SETLEASE, _F_NOTIFY = 1024, 1026

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
"""Offsets in `struct seccomp_data`. For the arguments: of their low words."""


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def program() -> Any:
    """The filter for this machine, as `syscalls.install_filter` takes it."""
    which = machine()
    assert which is not None
    code = instructions(which)
    data = b"".join(struct.pack("=HBBI", *line) for line in code)
    lines = ctypes.create_string_buffer(data, len(data))
    made = _FilterProgram(len(code), ctypes.addressof(lines))
    made.lines = lines  # keeps the buffer alive
    return made


def instructions(which: int) -> list[tuple[int, int, int, int]]:
    """The instructions of the filter (classic BPF): code, instructions to skip if a test is true, and if it is false, operand.

    Args:
        which: 0: for x86_64; 1: for aarch64.
    """
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[which]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
        # clone: no new namespaces
        (_EQUAL, 0, 4, _CLONE[which]),
        (_LOAD, 0, 0, _FIRST),
        (_ANY_BIT, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
        # socketpair: only Unix streams, which cannot be connected to another socket
        (_EQUAL, 0, 7, _SOCKETPAIR[which]),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 4, _AF_UNIX),
        (_LOAD, 0, 0, _SECOND),
        (_AND, 0, 0, _SOCK_KIND),
        (_EQUAL, 0, 1, _SOCK_STREAM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        # fcntl: no leases, which delay writers of a visible file, and no reports of accesses to a visible directory
        (_EQUAL, 0, 5, _FCNTL[which]),
        (_LOAD, 0, 0, _SECOND),
        (_EQUAL, 1, 0, _F_SETLEASE),
        (_EQUAL, 0, 1, _F_NOTIFY),
        (_RETURN, 0, 0, _ERROR | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    decisions = {
        number: _ERROR | error
        for calls, error in ((ABSENT, _ENOSYS), (REFUSED, _EPERM))
        for number in (numbers[which] for numbers in calls.values())
        if number is not None
    }
    ranges = [(0, _ALLOW)]
    for number in sorted({*decisions, *(number + 1 for number in decisions)}):
        decision = decisions.get(number, _ALLOW)
        if decision != ranges[-1][1]:
            ranges.append((number, decision))
    return code + _binary_search(ranges)


def _binary_search(ranges: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Instructions that find the decision on a number by binary search. The kernel runs the filter at each call, and once for
    all numbers when the filter is installed.

    Args:
        ranges: the first number of each range, and the decision on its numbers.
    """
    if len(ranges) == 1:
        return [(_RETURN, 0, 0, ranges[0][1])]
    middle = len(ranges) // 2
    below = _binary_search(ranges[:middle])
    return [(_AT_LEAST, len(below), 0, ranges[middle][0]), *below, *_binary_search(ranges[middle:])]
