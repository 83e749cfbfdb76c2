"""`rlm doctor`: what this machine can do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlm.cli.check import Check
from rlm.cli.model_options import add_server_options
from rlm.cli.output import emit, emit_json
from rlm.cli.status import ExitCode

NAME = "doctor"
USAGE = "rlm doctor [options]"
SUMMARY = "what this machine can do, and what is missing"
DESCRIPTION = """\
Look at what `rlm run` needs: Python, the REPL and how well it is isolated, providers with their keys, a model server.
The exit code is 0 if `rlm run` can work, else 1, and the output says what to do. No model is called without --call. No key is
shown.

  rlm doctor
  rlm doctor --base-url http://localhost:8000/v1 --call
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_server_options(parser)
    parser.add_argument(
        "--call", action="store_true", help="ask the model for one word, which may cost money"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def main(options: argparse.Namespace) -> int:
    """Prints what was found. Returns 0 if `rlm run` can work."""
    import asyncio  # here, because the import takes 40 ms that --help does not need

    checks = asyncio.run(_look(options))
    missing = _missing(checks)
    if options.json:
        told = [check for check in checks if check.status in ("failed", "warning")]
        emit_json(
            {
                "ready": not missing,
                "missing": missing,
                "advice": [check.advice for check in told if check.advice is not None],
                "checks": [check.to_dict() for check in checks],
            }
        )
    else:
        emit(_table(checks, missing))
    return ExitCode.NO_ANSWER if missing else ExitCode.ANSWERED


async def _look(options: argparse.Namespace) -> list[Check]:
    from rlm.cli import machine_checks, model_checks
    from rlm.clients import backends

    checks = [
        machine_checks.python(),
        machine_checks.system(),
        machine_checks.temporary_files(),
        machine_checks.isolation(),
        await machine_checks.repl(),
    ]
    # vllm is a server of the user's own: `model_checks.server` looks at it.
    checks += [model_checks.provider(backend) for backend in backends() if backend != "vllm"]
    checks += await model_checks.server(options)
    checks += [machine_checks.extra(*extra) for extra in machine_checks.EXTRAS]
    return checks


def _missing(checks: Sequence[Check]) -> list[str]:
    """The reasons why `rlm run` cannot work."""
    missing = [f"{check.name}: {check.detail}" for check in checks if check.status == "failed"]
    if not any(check.status == "ok" and check.data.get("model_source") for check in checks):
        missing.append(
            "there is no model: set a provider's key, or name a server with --base-url or RLM_BASE_URL"
        )
    return missing


def _table(checks: Sequence[Check], missing: Sequence[str]) -> str:
    marks = {"ok": "ok", "off": "-", "warning": "!", "failed": "FAILED"}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.status]:<6}  {check.name:<{width}}  {check.detail}".rstrip())
        if check.advice is not None and check.status != "off":
            lines.append(f"{'':<6}  {'':<{width}}  -> {check.advice}")
    lines.append("")
    lines += [f"rlm run cannot work yet. {reason}" for reason in missing] or ["rlm run can work."]
    return "\n".join(lines)
