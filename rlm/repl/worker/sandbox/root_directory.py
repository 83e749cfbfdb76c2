"""The root directory of a sandbox: it has only what is put there, and all of it is read-only."""

# Few imports: no pathlib, no contextlib.
# ruff: noqa: PTH101, PTH102, PTH103, PTH110, PTH112, PTH113, PTH114, PTH115, PTH116, PTH118, PTH119, PTH120, PTH123, PTH208, PTH211, SIM105

from __future__ import annotations

import os
import stat

from ..process.resources import go_first
from . import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SCRATCH = "/tmp"
"""The only directory that a worker can write to."""
HOME = SCRATCH + "/repl"
"""The worker's working directory, `HOME` and directory for temporary files. The worker makes it."""
_SHARED_MEMORY = SCRATCH + "/.shm"
DEVICES = tuple("/dev/" + name for name in ("null", "zero", "full", "random", "urandom"))
_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM = (
    *[f"/{part}" for part in _PROGRAMS],
    *[f"/usr/{part}" for part in (*_PROGRAMS, "libexec", "share", "include")],
    *[f"/usr/local/{part}" for part in (*_PROGRAMS, "libexec", "share", "include")],
    *("/nix/store", "/gnu/store"),
    *["/etc/" + name for name in ("alternatives", "ld.so.cache", "localtime", "timezone", "mime.types")],
)
"""What is visible of the system. Not /usr/src: many images have the programs that score, and their output, in /usr/src/app."""
_EMPTY = "/.hidden/empty"
_REVEALING = ("keys", "key-users")
"""Files of `/proc` that every user can read, and that describe the user rather than the sandbox."""
_HIDDEN_INFO = "Metadata-Version: 2.1\nName: hidden\nVersion: 0\n"
"""The METADATA of a hidden `.dist-info`: `importlib.metadata` fails on a `.dist-info` without it."""
_HIDDEN = 'raise ModuleNotFoundError(f"{__name__} is hidden from the REPL by its sandbox", name=__name__)\n'


class RootDirectory:
    """Makes the root directory of a sandbox from parts of the host's.

    Args:
        visible: absolute paths of directories and files to show. A path that does not exist is left out.
        hidden: paths, without links, of packages, modules, `.dist-info` directories and other files below the visible paths. An
            import of a hidden module fails. Other hidden files are empty.
    """

    def __init__(self, visible: Iterable[str], hidden: Iterable[str]) -> None:
        self._links: dict[str, str] = {}
        """Symbolic links on the way to visible paths, and their targets."""
        self._real: set[str] = set()
        """Visible paths without links."""
        for path in (*_SYSTEM, *visible):
            self._resolve(path)
        self._hidden = list(hidden)
        self._mounts: list[str] = []
        self._mounts_in_scratch: list[str] = []
        self._links_in_scratch: list[tuple[str, str]] = []
        self._has_proc = False
        self._covered: list[str] = []
        """Files of `/proc` that workers must not read."""

    def _resolve(self, path: str) -> None:
        """Adds a path, and each link on the way to it."""
        for _ in range(40):
            link = _first_link(path)
            if link is None:
                if os.path.exists(path):
                    self._real.add(os.path.normpath(path))
                return
            target = self._links[link] = os.readlink(link)
            path = os.path.normpath(os.path.join(os.path.dirname(link), target)) + path[len(link) :]

    def _is_shown(self, path: str) -> bool:
        return any(within(path, mount) for mount in self._mounts)

    def enter(self, root: str) -> None:
        """Builds the root directory and makes it the root of this process. Everything else disappears.

        Args:
            root: an empty directory.

        Raises:
            OSError: the kernel refused a mount.
        """
        syscalls.make_mounts_private()
        flags = syscalls.READ_ONLY | syscalls.NO_SUID | syscalls.NO_DEVICES
        syscalls.mount("tmpfs", root, syscalls.NO_SUID | syscalls.NO_DEVICES, "mode=755,size=64m")
        for path in sorted(self._real):
            if not self._is_shown(path):
                self._show(root, path, flags)
        self._mounts_in_scratch = [path for path in self._mounts if within(path, SCRATCH)]
        for path, target in sorted(self._links.items()):
            if not self._is_shown(path):
                os.makedirs(os.path.dirname(root + path), exist_ok=True)
                os.symlink(target, root + path)
                if within(path, SCRATCH):
                    self._links_in_scratch.append((path, target))
        self._add_files(root)
        self._hide(root)
        syscalls.add_mount_flags(root, flags)
        for path in DEVICES:
            syscalls.bind(path, root + path)
            syscalls.add_mount_flags(root + path, syscalls.READ_ONLY | syscalls.NO_SUID | syscalls.NO_EXEC)
        try:
            # Only the mount is read-only, not the file system. Otherwise the kernel would not let a worker mount a writable
            # /proc of its own.
            syscalls.mount("proc", root + "/proc", syscalls.NO_SUID | syscalls.NO_DEVICES | syscalls.NO_EXEC)
            syscalls.add_mount_flags(root + "/proc", syscalls.READ_ONLY)
            self._has_proc = True
            self._covered = _revealing_files(root)
        except OSError:
            pass  # in a container that masks parts of its /proc, the kernel allows no new /proc
        syscalls.make_root(root)

    def _show(self, root: str, path: str, flags: int) -> None:
        """Mounts a visible path. A file of /etc is copied: a mount would cost each worker time."""
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        elif within(path, "/etc") and os.path.isfile(path):
            with open(path, "rb") as source, open(target, "wb") as copy:
                copy.write(source.read())
            os.chmod(target, os.stat(path).st_mode & 0o777)
            return
        else:
            with open(target, "wb"):
                pass
        syscalls.bind(path, target)
        syscalls.add_mount_flags(target, flags)
        self._mounts.append(path)

    def _add_files(self, root: str) -> None:
        """Adds the files that programs expect of every system."""
        uid, gid = os.getuid(), os.getgid()
        files = {
            "/etc/passwd": f"user:x:{uid}:{gid}::{HOME}:/bin/sh\n",
            "/etc/group": f"user:x:{gid}:\n",
            "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
            **dict.fromkeys(DEVICES, ""),
        }
        links = {
            "/dev/shm": _SHARED_MEMORY,
            "/dev/fd": "/proc/self/fd",
            "/dev/stdin": "/proc/self/fd/0",
            "/dev/stdout": "/proc/self/fd/1",
            "/dev/stderr": "/proc/self/fd/2",
            "/var/tmp": SCRATCH,
        }
        for path in ("/dev", "/etc", "/var", "/proc", SCRATCH):
            os.makedirs(root + path, exist_ok=True)
        for path in (*files, *links):
            if self._is_shown(path) or os.path.lexists(root + path):
                continue
            if path in links:
                os.symlink(links[path], root + path)
            else:
                with open(root + path, "w") as file:
                    file.write(files[path])

    def _hide(self, root: str) -> None:
        """Mounts stand-ins over the hidden paths."""
        folder = root + "/.hidden/"
        package, info, module = (folder + name for name in ("package", "info", "module.py"))
        empty = root + _EMPTY
        os.makedirs(package)
        os.mkdir(info)
        for path, text in (
            (package + "/__init__.py", _HIDDEN),
            (info + "/METADATA", _HIDDEN_INFO),
            (module, _HIDDEN),
            (empty, ""),
        ):
            with open(path, "w") as file:
                file.write(text)
        modules: dict[str, set[str]] = {}
        for path in self._hidden:
            target = root + path
            if not self._is_shown(path) or not os.path.lexists(target):
                continue
            if os.path.isdir(target):
                syscalls.bind(info if path.endswith(".dist-info") else package, target)
            elif path.endswith(".py"):
                syscalls.bind(module, target)
                modules.setdefault(os.path.dirname(path), set()).add(os.path.basename(path)[:-3])
            else:
                syscalls.bind(empty, target)
        for number, (path, names) in enumerate(modules.items()):
            _cover_cache(root, path + "/__pycache__", names, f"{folder}cache{number}")

    def mount_for_worker(self, scratch_bytes: int, processes: int | None) -> dict[str, Any]:
        """Mounts a scratch directory and a /proc for this process, which must be a worker in a mount namespace of its own.

        Args:
            scratch_bytes: the most bytes that files in the scratch directory may take.
            processes: the most processes and threads at once. None: the kernel does not limit them.

        Returns:
            "own /proc", "process limit": see `isolation.Probe`.

        Raises:
            OSError: the kernel refused a mount.
        """
        # The scratch directory hides what is visible below its path, such as a Python in /tmp. So those paths are mounted
        # again in the scratch directory.
        copies = [(path, syscalls.copy_mount(path)) for path in self._mounts_in_scratch]
        flags = syscalls.NO_SUID | syscalls.NO_DEVICES
        inodes = max(1024, scratch_bytes >> 12)
        syscalls.mount("tmpfs", SCRATCH, flags, f"mode=700,size={scratch_bytes},nr_inodes={inodes}")
        os.mkdir(_SHARED_MEMORY, 0o700)
        for path, fd in copies:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.mkdir(path)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            syscalls.attach_mount(fd, path)
            os.close(fd)
        for path, target in self._links_in_scratch:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(target, path)
        if not self._has_proc:
            # Without a /proc nothing can count processes either.
            return {"own /proc": False, "process limit": "none"}
        flags |= syscalls.NO_EXEC
        syscalls.mount("proc", "/proc", flags)
        go_first()
        for path in self._covered:
            syscalls.bind(_EMPTY, path)
        limited = processes is not None and _limit_processes(processes)
        syscalls.remount("/proc", flags | syscalls.READ_ONLY)
        return {"own /proc": True, "process limit": "kernel" if limited else "count"}


def _revealing_files(root: str) -> list[str]:
    """Files of `/proc` that workers must not read, though this process can: those of `_REVEALING`, and, if this process runs as
    root, those for root alone."""
    found = []
    for name in os.listdir(root + "/proc"):
        path = "/proc/" + name
        status = os.lstat(root + path)
        if stat.S_ISREG(status.st_mode) and (name in _REVEALING or not status.st_mode & stat.S_IROTH):
            try:
                os.close(os.open(root + path, os.O_RDONLY | os.O_NONBLOCK))
            except OSError:
                continue
            found.append(path)
    return found


def _cover_cache(root: str, cache: str, hidden: set[str], cover: str) -> None:
    """Hides the compiled code of hidden modules: the files that exist, and files that another process writes when it imports
    these modules.

    Args:
        cache: the `__pycache__` directory of the modules.
        hidden: the names of the modules.
        cover: the path of a directory to make. It gets the compiled code of the other modules, and is mounted over `cache`.
    """
    try:
        os.mkdir(cache)
    except OSError:
        pass  # it exists; or this user cannot make it, so Python cannot write compiled code as this user either
    if not os.path.isdir(root + cache):
        return
    os.mkdir(cover)
    try:
        for name in os.listdir(cache):
            if name.partition(".")[0] not in hidden:
                with open(f"{cache}/{name}", "rb") as source, open(f"{cover}/{name}", "wb") as copy:
                    copy.write(source.read())
    except OSError:
        pass  # no room, or the file is gone: a worker compiles the module itself
    syscalls.bind(cover, root + cache)


def _limit_processes(processes: int) -> bool:
    """Limits the processes and threads of this pid namespace: sets the largest process id that the kernel gives out in it.

    Returns:
        Whether the kernel can. Before Linux 6.14 it has only one limit of process ids, for the whole machine.
    """
    # The kernel does not reuse ids below 300. So there must be `processes` ids from 300 on.
    try:
        fd = os.open("/proc/sys/kernel/pid_max", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(fd, str(300 + processes).encode())
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder, or in it."""
    return path == folder or path.startswith(folder + "/")


def _first_link(path: str) -> str | None:
    """The first symbolic link along a path. None: there is none."""
    end = 0
    while end >= 0:
        end = path.find("/", end + 1)
        part = path if end < 0 else path[:end]
        if os.path.islink(part):
            return part
    return None
