"""Quickstarts: a small evaluation of one task, from the model server to the table of scores.

A task's package describes its quickstart with `Quickstart` and runs `main`. It calls verifiers' own evaluation command. The
model is the server that `RLM_BASE_URL` names (with `RLM_MODEL` and `RLM_API_KEY`, if it needs them). Otherwise it is the
task's reference policy, behind a server that runs as long as the evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from rlm.testing.server import OWNER
from rlm_train import report

if TYPE_CHECKING:
    from rlm.testing import Policy

NO_MODEL = "a script with looked-up labels: it is NO LANGUAGE MODEL, and its scores say nothing about one"

# Seconds that an interrupted evaluation has to clean up.
_STOP_SECONDS = 20.0
# Seconds for the list of models.
_LIST_SECONDS = 10.0


class ServerError(Exception):
    """The model server cannot be used; the message names the cause."""


@dataclass(frozen=True, slots=True)
class Server:
    """The model server of an evaluation."""

    base_url: str
    model: str
    api_key: str | None
    note: str | None
    """Warning about the model, for readers of the scores."""


@dataclass(frozen=True, slots=True)
class Quickstart:
    """The evaluation of one task that its quickstart runs."""

    task: str
    """Id of the task's environment."""
    tasks: int
    """Number of tasks."""
    rollouts: int
    """Rollouts per task."""
    reference_model: str
    """Name of the model that the reference server serves."""
    reference_policy: Callable[[], Policy]
    """Makes the reference policy."""
    taskset: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the taskset, by option name."""

    @contextlib.contextmanager
    def server(self, environment: Mapping[str, str]) -> Iterator[Server]:
        """The server that the environment variables name, or else the reference server.

        Raises:
            ServerError: the named server cannot be used.
        """
        if base_url := environment.get("RLM_BASE_URL"):
            model, api_key = environment.get("RLM_MODEL"), environment.get("RLM_API_KEY")
            yield named_server(base_url, model or None, api_key or None)
            return
        from rlm.testing import serve  # imported on first use: a named server does not need it

        with serve(self.reference_policy(), models=[self.reference_model], record=False) as running:
            yield Server(running.base_url, running.model, None, f"{self.reference_model} is {NO_MODEL}")

    def command(self, server: Server, run: Path) -> list[str]:
        """The evaluation command: verifiers' `vf-eval`, named `eval` before 0.4.

        Args:
            server: the model server.
            run: folder that the run is written to.
        """
        name = "vf-eval" if _verifiers_version() >= (0, 4) else "eval"
        options = {"num-tasks": self.tasks, **self.taskset}
        arguments = [
            *(self.task, "-r", str(self.rollouts), "-m", server.model),
            *(text for key, value in options.items() for text in (f"--env.taskset.{key}", _argument(value))),
            *("--env.agent.runtime.type", "subprocess"),
            *("--client.base-url", server.base_url, "--client.api-key-var", "RLM_API_KEY"),
            *("--output-dir", str(run.parent), "--run.name", run.name, "--no-push"),
        ]
        if name == "eval":
            # Before 0.4 rollouts run in worker processes by default, each of which imports everything again.
            arguments.append("--no-serve")
        return [str(Path(sys.executable).with_name(name)), *arguments]


def main(quickstart: Quickstart, argv: Sequence[str] | None = None) -> int:
    """Runs a quickstart as a program.

    Args:
        quickstart: the evaluation.
        argv: arguments of the command line; None: those of the process.

    Returns:
        The exit status: 0 if every rollout was scored, 1 if not, 2 if the model server cannot be used, 130 after an
        interrupt, else that of the evaluation command.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {quickstart.task}.quickstart", description=__doc__)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), help="folder that runs are written to"
    )
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        with _terminable(), quickstart.server(os.environ) as server:
            _announce(console, quickstart, server)
            run = arguments.output_dir / f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            command = quickstart.command(server, run)
            started = time.monotonic()
            code = _run(command, server)
            seconds = time.monotonic() - started
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if code != 0:
        line = shlex.join(command)
        print(f"error: the evaluation ended with status {code}; its command was: {line}", file=sys.stderr)
        return code if code > 0 else 128 - code
    result = report.read_run(run)
    console.print()
    report.render(result, console, note=server.note)
    console.print(f"evaluated in {seconds:.0f} s", highlight=False)
    complete = len(result.rollouts) == quickstart.tasks * quickstart.rollouts
    return 0 if complete and all(rollout.ok for rollout in result.rollouts) else 1


def named_server(base_url: str, model: str | None, api_key: str | None) -> Server:
    """Asks a server which models it serves.

    Args:
        base_url: URL of the API; it ends in /v1 on most servers.
        model: one of the server's models; None: its only one.
        api_key: bearer token; None: none is sent.

    Raises:
        ServerError: the server does not answer, refuses the key, or does not have the model.
    """
    base_url = base_url.rstrip("/").removesuffix("/chat/completions")
    models = _models(base_url, api_key)
    names = [str(entry.get("id")) for entry in models]
    if model is None:
        if len(names) != 1:
            listed = ", ".join(names[:20]) or "it lists none"
            raise ServerError(f"name the model of {base_url} to use with RLM_MODEL: {listed}")
        model = names[0]
    elif names and model not in names:
        raise ServerError(f"{base_url} has no model {model!r}; it has {', '.join(names[:20])}")
    scripted = any(entry.get("id") == model and entry.get("owned_by") == OWNER for entry in models)
    return Server(base_url, model, api_key, f"{model} is {NO_MODEL}" if scripted else None)


def _models(base_url: str, api_key: str | None) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        request = urllib.request.Request(f"{base_url}/models", headers=headers)
    except ValueError:
        raise ServerError(
            f"RLM_BASE_URL={base_url} is not a URL: a URL starts with http:// or https://"
        ) from None
    try:
        with urllib.request.urlopen(request, timeout=_LIST_SECONDS) as answer:
            entries = json.load(answer)["data"]
            return [entry for entry in entries if isinstance(entry, dict)]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            cause = (
                "it needs a key: set RLM_API_KEY" if api_key is None else "it refuses the key in RLM_API_KEY"
            )
            raise ServerError(f"{base_url}: {cause} (status {error.code})") from None
        raise ServerError(
            f"{base_url}/models answers with status {error.code}: RLM_BASE_URL usually ends in /v1"
        ) from None
    except urllib.error.URLError as error:
        raise ServerError(f"no model server answers at RLM_BASE_URL={base_url}: {error.reason}") from None
    except OSError as error:
        raise ServerError(f"no model server answers at RLM_BASE_URL={base_url}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            f"{base_url}/models is not a list of models: RLM_BASE_URL must be the URL of a model server"
        ) from None


def _argument(value: Any) -> str:
    """A setting in the form of the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _verifiers_version() -> tuple[int, ...]:
    major, minor = importlib.metadata.version("verifiers").split(".")[:2]
    return int(major), int(minor)


def _announce(console: Console, quickstart: Quickstart, server: Server) -> None:
    console.rule(f"{quickstart.task.upper()} quickstart")
    console.print(f"model: {server.model} at {server.base_url}", highlight=False, markup=False)
    if server.note:
        console.print(server.note, style="bold yellow", highlight=False, markup=False)
        if server.model == quickstart.reference_model:
            hint = "RLM_BASE_URL (and RLM_MODEL, RLM_API_KEY) name a real one."
            console.print(hint, style="dim", highlight=False)
    size = f"{quickstart.tasks} tasks x {quickstart.rollouts} rollouts"
    console.print(f"{size}; verifiers takes some seconds to load\n", style="dim", highlight=False)


def _run(command: Sequence[str], server: Server) -> int:
    """Runs the evaluation, which shows its own progress, and returns its status. An interrupt ends the evaluation first."""
    environment = dict(os.environ)
    environment["RLM_API_KEY"] = server.api_key or "none"
    if server.api_key is None and server.base_url.startswith("http://127.0.0.1"):
        environment["NO_PROXY"] = ",".join(filter(None, [environment.get("NO_PROXY"), "127.0.0.1"]))
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except BaseException:
        # On Ctrl-C the terminal signals the evaluation too, and it cleans up. A second signal does no harm.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM end the program as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
