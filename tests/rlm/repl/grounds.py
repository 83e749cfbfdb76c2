"""What attacks of code in a REPL are aimed at: files, servers and a process of our own, which hold what it should not get."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

_VICTIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # who may, may trace it, whatever Yama says
held = ctypes.create_string_buffer(sys.stdin.readline().strip().encode())
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"signalled\\n"))
print(ctypes.addressof(held), flush=True)
for line in sys.stdin:
    print("holds", held.value.decode(), flush=True)
"""


class Grounds:
    """All of it, until it is left.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_hex(16)
        """What files, memory and variables hold."""
        self.shared = folder / "shared"
        """A folder that sandboxes are told to show."""
        self.private = folder / "home"
        self.shared.mkdir()
        (self.private / ".aws").mkdir(parents=True)
        self.key = self.private / ".aws" / "credentials"
        self.note = self.shared / "note.txt"
        for path in (self.key, self.note):
            path.write_text(self.secret if path == self.key else "a note")
        self.received: list[bytes] = []
        """What came to the servers."""
        self.arrived = threading.Event()
        self._sockets = [
            self._serve(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            self._serve(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            self._serve(socket.AF_UNIX, socket.SOCK_STREAM, str(self.shared / "stream")),
            self._serve(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.shared / "packets")),
            self._serve(socket.AF_UNIX, socket.SOCK_STREAM, f"\0rlm-{self.secret}"),
        ]
        self.tcp, self.udp = (server.getsockname()[1] for server in self._sockets[:2])
        self.victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM],
            env={"RLM_TEST_KEY": self.secret},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._tell(self.secret)
        self.address = int(self._hear())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._sockets:
            server.close()
        self.victim.communicate()

    def names(self) -> dict[str, object]:
        """What the code is told, so that it need not search."""
        return {
            "VICTIM": self.victim.pid,
            "ADDRESS": self.address,
            "SHARED": str(self.shared),
            "KEY": str(self.key),
            "NOTE": str(self.note),
            "PRIVATE": str(self.private),
            "TCP": self.tcp,
            "UDP": self.udp,
            "ABSTRACT": self.secret,
            "TOKEN": secrets.token_hex(8),
            "HOST": os.getpid(),
        }

    def ask_victim(self) -> tuple[bool, str]:
        """Whether the process has had a signal since it was asked last, and what it holds."""
        self._tell("")
        line = self._hear()
        signalled = line == "signalled"
        while line == "signalled":
            line = self._hear()
        return signalled, line.removeprefix("holds ")

    def _tell(self, line: str) -> None:
        assert self.victim.stdin is not None
        self.victim.stdin.write(line + "\n")

    def _hear(self) -> str:
        assert self.victim.stdout is not None
        return self.victim.stdout.readline().strip()

    def _serve(self, family: int, kind: int, address: object) -> socket.socket:
        server = socket.socket(family, kind)
        server.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            server.listen()
        threading.Thread(target=self._listen, args=(server, kind), daemon=True).start()
        return server

    def _listen(self, server: socket.socket, kind: int) -> None:
        while True:
            try:
                if kind == socket.SOCK_DGRAM:
                    self._took(server.recv(100))
                else:
                    with server.accept()[0] as link:
                        self._took(link.recv(100))
            except OSError:
                return  # it was closed

    def _took(self, data: bytes) -> None:
        self.received.append(data)
        self.arrived.set()
