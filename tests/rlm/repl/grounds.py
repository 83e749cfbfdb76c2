"""The targets of attacks by code in a REPL: files, servers and a process of the host, which hold a secret."""

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
ctypes.CDLL(None).prctl(0x59616d61, ctypes.c_ulong(-1), 0, 0, 0)  # Yama shall not refuse what permissions allow
held = ctypes.create_string_buffer(sys.stdin.readline().strip().encode())
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"signalled\\n"))
print(ctypes.addressof(held), flush=True)
for line in sys.stdin:
    print("holds", held.value.decode(), flush=True)
"""


class Grounds:
    """The targets. They exist inside the `with` block.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_hex(16)
        """The content of the files, the memory and the variables."""
        self.shared = folder / "shared"
        """A folder that is readable in the sandboxes."""
        self.private = folder / "home"
        self.shared.mkdir()
        (self.private / ".aws").mkdir(parents=True)
        self.key = self.private / ".aws" / "credentials"
        self.note = self.shared / "note.txt"
        for path in (self.key, self.note):
            path.write_text(self.secret if path == self.key else "a note")
        self.received: list[bytes] = []
        """The data that the servers got."""
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
        """Names that the code gets, so that it does not have to search."""
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
        """Whether the process has got a signal since the last call, and what its memory holds."""
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
                return  # the server was closed

    def _took(self, data: bytes) -> None:
        self.received.append(data)
        self.arrived.set()
