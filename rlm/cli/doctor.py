"""`rlm doctor`: what this machine can do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlm.cli.finding import Finding
from rlm.cli.model_options import add_server_options
from rlm.cli.printing import emit, emit_json
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
    """Prints the findings. Returns 0 if `rlm run` can work."""
    import asyncio  # here, because the import takes 40 ms that --help does not need

    findings = asyncio.run(_run_checks(options))
    missing = _missing(findings)
    if options.json:
        told = [finding for finding in findings if finding.status in ("failed", "warning")]
        emit_json(
            {
                "ready": not missing,
                "missing": missing,
                "advice": [finding.advice for finding in told if finding.advice is not None],
                "checks": [finding.to_dict() for finding in findings],
            }
        )
    else:
        emit(_table(findings, missing))
    return ExitCode.NO_ANSWER if missing else ExitCode.ANSWERED


async def _run_checks(options: argparse.Namespace) -> list[Finding]:
    from rlm.cli import machine_checks, model_checks
    from rlm.clients import backends

    findings = [
        machine_checks.python(),
        machine_checks.system(),
        machine_checks.temporary_files(),
        machine_checks.isolation(),
        await machine_checks.repl(),
    ]
    # vllm is a server of the user's own: `model_checks.server` looks at it.
    findings += [model_checks.provider(backend) for backend in backends() if backend != "vllm"]
    findings += await model_checks.server(options)
    findings += [machine_checks.extra(*extra) for extra in machine_checks.EXTRAS]
    return findings


def _missing(findings: Sequence[Finding]) -> list[str]:
    """The reasons why `rlm run` cannot work."""
    missing = [f"{finding.name}: {finding.detail}" for finding in findings if finding.status == "failed"]
    if not any(finding.status == "ok" and finding.data.get("model_source") for finding in findings):
        missing.append(
            "there is no model: set a provider's key, or name a server with --base-url or RLM_BASE_URL"
        )
    return missing


def _table(findings: Sequence[Finding], missing: Sequence[str]) -> str:
    marks = {"ok": "ok", "off": "-", "warning": "!", "failed": "FAILED"}
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.status]:<6}  {finding.name:<{width}}  {finding.detail}".rstrip())
        if finding.advice is not None and finding.status != "off":
            lines.append(f"{'':<6}  {'':<{width}}  -> {finding.advice}")
    lines.append("")
    lines += [f"rlm run cannot work yet. {reason}" for reason in missing] or ["rlm run can work."]
    return "\n".join(lines)
