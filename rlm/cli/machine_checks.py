"""The checks of `rlm doctor` on this machine."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from importlib.util import find_spec

from rlm.cli.finding import Finding
from rlm.cli.version import own_version
from rlm.errors import RLMError

EXTRAS = (
    ("answers by JSON schema", "jsonschema", "structured"),
    ("answers by pydantic model", "pydantic", "structured"),
    ("OpenTelemetry spans", "opentelemetry", "otel"),
)


def python() -> Finding:
    version = platform.python_version()
    return Finding(
        "Python",
        "ok",
        f"{version} ({platform.python_implementation()}), rlm {own_version()}",
        data={"version": version, "rlm": own_version()},
    )


def system() -> Finding:
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    data = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    if platform.system() == "Linux":
        return Finding("system", "ok", name, data=data)
    if platform.system() == "Darwin":
        return Finding("system", "warning", name, "on macOS there is no sandbox; see docs/repl.md", data)
    return Finding("system", "failed", name, "local REPLs need Linux or macOS", data)


def temporary_files() -> Finding:
    try:
        with tempfile.NamedTemporaryFile(prefix="rlm-doctor-") as file:
            file.write(b"x")
            file.flush()
            folder = tempfile.gettempdir()
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            "temporary files",
            "failed",
            f"cannot be written: {error}",
            "set TMPDIR to a folder that can be written",
        )
    detail = f"{folder}, {free / 1e9:,.1f} GB free"
    data = {"folder": folder, "free_bytes": free}
    if free < 1e9:
        return Finding(
            "temporary files", "warning", detail, "REPLs keep their files there: free some space", data
        )
    return Finding("temporary files", "ok", detail, data=data)


def isolation() -> Finding:
    """The isolation that the code of a model gets by default."""
    from rlm.environments.isolation import probe

    found = probe()
    features = ", ".join(_feature(name, value) for name, value in found.features.items())
    data = {"level": found.level, "reason": found.reason, "features": dict(found.features)}
    if found.level == "sandbox":
        return Finding("isolation", "ok", f"sandbox ({features})", data=data)
    if found.level == "process":
        detail = f"process only: {found.reason}{f' ({features})' if features else ''}"
        return Finding(
            "isolation",
            "warning",
            detail,
            "run models that you do not trust in a container or a virtual machine; docs/repl.md lists what the code can reach",
            data,
        )
    return Finding("isolation", "failed", found.reason or "a local REPL cannot run here", data=data)


def _feature(name: str, value: bool | int | str) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {value}" if value else f"no {name}"


async def repl() -> Finding:
    """Opens a REPL as `rlm run` does, and runs a cell in it."""
    from rlm.environments import Query, QueryReply, REPLSettings, SessionSpec, make_environment

    async def refuse(query: Query) -> list[QueryReply]:
        return [QueryReply("", failed=True) for _ in query.prompts]

    started = time.perf_counter()
    try:
        repl = await make_environment("local").open(
            SessionSpec(settings=REPLSettings(cell_timeout=30.0)), refuse
        )
        try:
            result = await repl.execute("print(6 * 7)")
        finally:
            await repl.close()
    except RLMError as error:
        return Finding("REPL", "failed", str(error), "docs/repl.md says what a REPL needs")
    milliseconds = (time.perf_counter() - started) * 1000
    if result.stdout != "42\n":
        said = result.error or result.stderr or result.stdout
        return Finding("REPL", "failed", f"a cell did not run: {said}", "docs/repl.md says what a REPL needs")
    return Finding(
        "REPL", "ok", f"started and ran a cell in {milliseconds:.0f} ms", data={"milliseconds": milliseconds}
    )


def extra(name: str, module: str, extra: str) -> Finding:
    if _installed(module):
        return Finding(name, "ok", f"{module} is installed")
    return Finding(name, "off", f"pip install 'rlms[{extra}]'")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a dotted name whose package is missing
        return False
