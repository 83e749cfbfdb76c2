"""The floor: the least that a REPL in its own process can cost on this machine.

A fork server forks a child for each REPL. The child gets one end of a socket pair, and runs the code that it receives with
`exec`. There is no supervisor, no captured output and no limit, and no namespace survives an error: the costs are those of
the fork, the socket and the copy. The sandboxed floor puts the child into its own user, mount, pid, network and IPC
namespaces, with its own /proc and scratch directory; it has no other part of a sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Self

_LENGTH = struct.Struct("<Q")

# Runs in the fork server and, after the fork, in the REPL. It is text, so that it imports nothing of this project.
_PARENT = r"""
import array, json, mmap, os, signal, socket, struct, sys
LENGTH = struct.Struct("<Q")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
control = socket.socket(fileno=int(sys.argv[1]))

def take(n):
    parts = []
    while n:
        part = channel.recv(min(n, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        n -= len(part)
    return b"".join(parts)

def read():
    return json.loads(take(LENGTH.unpack(take(8))[0]))

def write(value):
    data = json.dumps(value).encode()
    channel.sendall(LENGTH.pack(len(data)) + data)

def ask(prompts):
    write({"ask": prompts})
    return read()

USERS, MOUNTS, IPC, NETWORK, PROCESSES = 0x10000000, 0x20000, 0x08000000, 0x40000000, 0x20000000
sandboxed = sys.argv[2] == "sandboxed"

def check(result):
    if result:
        sys.exit("the kernel refuses")

if sandboxed:
    import ctypes
    libc = ctypes.CDLL(None)
    uid, gid = os.getuid(), os.getgid()
    check(libc.unshare(USERS | MOUNTS | IPC | NETWORK))
    for name, text in ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"):
        with open("/proc/self/" + name, "w") as file:
            file.write(text)
    check(libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None))
    check(libc.prctl(36, ctypes.c_ulong(1), 0, 0, 0))  # its grandchildren become its children

def enter():
    # into its own namespaces, as the first process of its pid namespace
    check(libc.unshare(MOUNTS | PROCESSES))
    if os.fork():
        os._exit(0)
    check(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(6), b"size=1g"))
    check(libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(14), None))

while True:
    data, fds, _, _ = socket.recv_fds(control, 1, 2)
    if not data:
        os._exit(0)
    if os.fork():
        for fd in fds:
            os.close(fd)
        continue
    control.close()
    if sandboxed:
        enter()
    channel = socket.socket(fileno=fds[0])
    names = {"ask": ask}
    if len(fds) > 1:
        with mmap.mmap(fds[1], 0, access=mmap.ACCESS_READ) as view:
            names["context"] = str(view, "utf-8")
    while True:
        exec(read()["code"], names)
        write({"done": True})
"""

Model = Callable[[str], Awaitable[str]]


class FloorREPL:
    """One forked child."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: Model) -> None:
        self._reader = reader
        self._writer = writer
        self._model = model

    async def execute(self, code: str) -> None:
        self._write({"code": code})
        while True:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(8))
            frame = json.loads(await self._reader.readexactly(length))
            if "done" in frame:
                return
            self._write(await asyncio.gather(*(self._model(prompt) for prompt in frame["ask"])))

    def _write(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Floor:
    """The fork server.

    Args:
        sandboxed: whether each child has its own namespaces.
    """

    def __init__(self, *, sandboxed: bool = False) -> None:
        self._control, theirs = socket.socketpair()
        self._parent = subprocess.Popen(
            [
                sys.executable,
                "-S",
                "-E",
                "-c",
                _PARENT,
                str(theirs.fileno()),
                "sandboxed" if sandboxed else "",
            ],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._control.close()
        self._parent.wait()

    @property
    def pid(self) -> int:
        return self._parent.pid

    async def open(self, model: Model, context: int | None = None) -> FloorREPL:
        """Starts a REPL. `context` is the descriptor of a memfd that holds UTF-8."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self._control, [b"f"], [theirs.fileno(), *([] if context is None else [context])])
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=1 << 26)
        return FloorREPL(reader, writer, model)


def memfd(text: str) -> int:
    """The descriptor of a new memfd with the text as UTF-8. The caller closes it."""
    descriptor = os.memfd_create("floor")
    view = memoryview(text.encode())
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor
