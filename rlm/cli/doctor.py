"""`rlm doctor`: what this machine can do."""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from rlm.cli.model_options import add_server_options, name_model, server_options
from rlm.cli.output import emit, emit_json
from rlm.cli.status import ExitCode
from rlm.errors import ConfigError, RLMError

NAME = "doctor"
USAGE = "rlm doctor [options]"
SUMMARY = "what this machine can do, and what is missing"
DESCRIPTION = """\
Look at what `rlm run` needs: Python, the REPL and how well it is isolated, providers with their keys, a model server.
Ends with 0 if `rlm run` can work, else with 1 and what to do. No model is called, unless --call says so, and no key is shown.

  rlm doctor
  rlm doctor --base-url http://localhost:8000/v1 --call
"""

Status = Literal["ok", "off", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    """off: not there, and not needed."""
    detail: str
    advice: str | None = None
    """What to do."""
    data: dict[str, Any] = field(default_factory=dict)
    """For programs."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "advice": self.advice,
            "data": self.data,
        }


EXTRAS = (
    ("answers by JSON schema", "jsonschema", "structured"),
    ("answers by pydantic model", "pydantic", "structured"),
    ("OpenTelemetry spans", "opentelemetry", "otel"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_server_options(parser)
    parser.add_argument(
        "--call", action="store_true", help="ask the model for one word, which may cost something"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def main(options: argparse.Namespace) -> int:
    """Prints what was found. Returns 0 if `rlm run` can work."""
    import asyncio  # 40 ms, which --help need not take

    checks = asyncio.run(_look(options))
    missing = _missing(checks)
    advice = [
        check.advice for check in checks if check.advice is not None and check.status in ("failed", "warning")
    ]
    if options.json:
        emit_json(
            {
                "ready": not missing,
                "missing": missing,
                "advice": advice,
                "checks": [c.to_dict() for c in checks],
            }
        )
    else:
        emit(_table(checks, missing))
    return ExitCode.NO_ANSWER if missing else ExitCode.ANSWERED


async def _look(options: argparse.Namespace) -> list[Check]:
    from rlm.clients import backends

    checks = [_python(), _system(), _temporary_files(), _isolation(), await _repl()]
    checks += [
        _provider(backend) for backend in backends() if backend != "vllm"
    ]  # which is a server, see below
    checks += await _server(options)
    checks += [_extra(*extra) for extra in EXTRAS]
    return checks


def _missing(checks: Sequence[Check]) -> list[str]:
    """What keeps `rlm run` from working, in words."""
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
    lines += [f"rlm run cannot work yet. {what}" for what in missing] or ["rlm run can work."]
    return "\n".join(lines)


def _python() -> Check:
    version = platform.python_version()
    return Check(
        "Python",
        "ok",
        f"{version} ({platform.python_implementation()}), rlm {own_version()}",
        data={"version": version, "rlm": own_version()},
    )


def own_version() -> str:
    """The version of the distribution `rlms`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rlms")
    except PackageNotFoundError:
        return "not installed"


def _system() -> Check:
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    data = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    if platform.system() == "Linux":
        return Check("system", "ok", name, data=data)
    if platform.system() == "Darwin":
        return Check("system", "warning", name, "on macOS there is no sandbox; see docs/repl.md", data)
    return Check("system", "failed", name, "local REPLs need Linux or macOS", data)


def _temporary_files() -> Check:
    try:
        with tempfile.NamedTemporaryFile(prefix="rlm-doctor-") as file:
            file.write(b"x")
            file.flush()
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            "temporary files",
            "failed",
            f"cannot be written: {error}",
            "set TMPDIR to a folder that can be written",
        )
    detail = f"{folder}, {free / 1e9:,.1f} GB free"
    data = {"folder": folder, "free_bytes": free}
    if free < 1e9:
        return Check("temporary files", "warning", detail, "REPLs keep their files there; make room", data)
    return Check("temporary files", "ok", detail, data=data)


def _isolation() -> Check:
    """The level that the code of a model gets, unless the user asks for another."""
    from rlm.environments.isolation import probe

    found = probe()
    features = ", ".join(_feature(name, value) for name, value in found.features.items())
    data = {"level": found.level, "reason": found.reason, "features": dict(found.features)}
    if found.level == "sandbox":
        return Check("isolation", "ok", f"sandbox ({features})", data=data)
    if found.level == "process":
        detail = f"process only: {found.reason}{f' ({features})' if features else ''}"
        return Check(
            "isolation",
            "warning",
            detail,
            "run models that you do not trust in a container or a virtual machine; docs/repl.md says what is open",
            data,
        )
    return Check("isolation", "failed", found.reason or "there can be no local REPL here", data=data)


def _feature(name: str, value: bool | int | str) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}" if value else f"no {name}"


async def _repl() -> Check:
    """Opens a REPL as `rlm run` would, and runs a cell in it."""
    from rlm.environments import Query, QueryReply, REPLSettings, SessionSpec, make_environment

    async def nobody(query: Query) -> list[QueryReply]:
        return [QueryReply("", failed=True) for _ in query.prompts]

    started = time.perf_counter()
    try:
        repl = await make_environment("local").open(
            SessionSpec(settings=REPLSettings(cell_timeout=30.0)), nobody
        )
        try:
            result = await repl.execute("print(6 * 7)")
        finally:
            await repl.close()
    except RLMError as error:
        return Check("REPL", "failed", str(error), "see docs/repl.md for what it needs")
    milliseconds = (time.perf_counter() - started) * 1000
    if result.stdout != "42\n":
        said = result.error or result.stderr or result.stdout
        return Check("REPL", "failed", f"a cell did not run: {said}", "see docs/repl.md for what it needs")
    return Check(
        "REPL", "ok", f"a cell ran, {milliseconds:.0f} ms from nothing", data={"milliseconds": milliseconds}
    )


def _provider(backend: str) -> Check:
    """Whether a backend has what it needs: a key, and its SDK."""
    from rlm.clients import make_client

    try:
        make_client(backend, model_name="none")
    except ConfigError as error:
        return Check(backend, "off", str(error))
    return Check(backend, "ok", "has its key", data={"model_source": backend})


async def _server(options: argparse.Namespace) -> list[Check]:
    """The server that is named, if any, and its model."""
    try:
        client = server_options(options)
    except ConfigError as error:
        return [Check("server", "failed", str(error))]
    checks: list[Check] = []
    if client.kwargs.get("base_url"):
        checks.append(await _models(client.kwargs))
        if checks[0].status == "failed":
            return checks
    if options.call:
        try:
            await name_model(client, "--model")
            checks.append(await _call(client.backend, client.kwargs))
        except RLMError as error:
            checks.append(Check("call", "failed", str(error)))
    return checks


async def _models(kwargs: dict[str, Any]) -> Check:
    from rlm.cli.servers import list_models

    url, wanted = kwargs["base_url"], kwargs.get("model_name")
    try:
        models = await list_models(url, kwargs.get("api_key"))
    except RLMError as error:
        return Check("server", "failed", str(error), "start it, or correct --base-url")
    shown = ", ".join(
        f"{model.name} ({model.window:,} tokens)" if model.window is not None else model.name
        for model in models[:10]
    )
    data = {
        "base_url": url,
        "models": [{"name": model.name, "window": model.window} for model in models],
        "model_source": url,
    }
    if len(models) > 10:
        shown += f" and {len(models) - 10} more"
    if wanted is not None and wanted not in [model.name for model in models]:
        return Check("server", "failed", f"{url} has no model {wanted!r}", f"it has {shown or 'none'}", data)
    return Check("server", "ok", f"{url}: {shown or 'no models'}", data=data)


async def _call(backend: str, kwargs: dict[str, Any]) -> Check:
    from rlm.clients import make_client

    started = time.perf_counter()
    client = make_client(backend, **{"max_retries": 0, **kwargs})
    reply = await client.complete([{"role": "user", "content": "Say ok."}])
    seconds = time.perf_counter() - started
    tokens = reply.usage.input_tokens + reply.usage.output_tokens
    return Check(
        "call",
        "ok",
        f"{client.model} answered in {seconds:.2f} s, {tokens:,} tokens",
        data={"model": client.model, "seconds": seconds, "tokens": tokens, "model_source": client.model},
    )


def _extra(name: str, module: str, extra: str) -> Check:
    if _installed(module):
        return Check(name, "ok", f"{module} is installed")
    return Check(name, "off", f"pip install 'rlms[{extra}]'")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a dotted name whose package is missing
        return False
