"""Serves one REPL over stdin and stdout. A container runs this."""

from __future__ import annotations

import os
import tempfile

from .control.relay import relay
from .protocol.frames import write_all
from .protocol.kinds import GREETING


def main() -> None:
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    folder = f"{tempfile.gettempdir()}/rlm-{os.getpid()}-{os.urandom(4).hex()}"
    write_all(sink, GREETING)
    relay(source, sink, folder)


if __name__ == "__main__":
    main()
