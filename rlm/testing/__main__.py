"""Serves a policy from the command line: `python -m rlm.testing module:policy --port 8000`.

It prints one line when it listens. The last word of the line is the base URL. SIGTERM and SIGINT end it with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import cast

from rlm.testing.policy import Policy
from rlm.testing.server import ModelServer


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal arrives. Returns the exit status: 0, or 1 if it could not listen."""
    parser = argparse.ArgumentParser(
        prog="python -m rlm.testing",
        description="Serve a scripted policy as an OpenAI-compatible model. It is not a language model.",
    )
    parser.add_argument("policy", help="module:name of a function that takes a ChatRequest")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: a free one)")
    parser.add_argument(
        "--model", action="append", help="name of the model; can be given many times (default: scripted)"
    )
    parser.add_argument(
        "--max-model-len",
        type=int,
        default=131_072,
        help="window in tokens of 4 characters (default: %(default)s)",
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every reply (default: 0)")
    parser.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="environment variable that holds the key; requests without the key are refused",
    )
    options = parser.parse_args(argv)
    key = None
    if options.api_key_env is not None:
        key = os.environ.get(options.api_key_env)
        if not key:
            parser.error(f"the environment variable {options.api_key_env} is not set")
    try:
        server = ModelServer(
            _load(options.policy),
            host=options.host,
            port=options.port,
            models=options.model or ("scripted",),
            max_model_len=options.max_model_len,
            latency=options.latency,
            api_key=key,
            record=False,  # a server that runs for days would keep every request
        )
    except (ValueError, TypeError) as exc:
        parser.error(str(exc))
    try:
        asyncio.run(_run(server, options.policy))
    except OSError as exc:
        print(f"cannot listen on {options.host}:{options.port}: {exc.strerror or exc}", file=sys.stderr)
        return 1
    return 0


async def _run(server: ModelServer, name: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with server:
        models = ", ".join(server.models)
        print(f"scripted policy {name} (no language model) serves {models} at {server.base_url}", flush=True)
        await stop.wait()


def _load(spec: str) -> Policy:
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ValueError(f"the policy must be given as module:name, not {spec!r}")
    try:
        return cast(Policy, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as exc:
        raise ValueError(f"there is no policy {spec!r}: {exc}") from None


if __name__ == "__main__":
    sys.exit(main())
