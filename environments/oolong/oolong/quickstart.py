"""OOLONG rollouts end to end: `python -m oolong.quickstart`.

It runs verifiers' own evaluation command on 8 questions about real text, two rollouts each, and prints what came of it. The
model is the server that `RLM_BASE_URL` names (with `RLM_MODEL` and `RLM_API_KEY`, if it needs them), or else the reference
server, which is started for the time of the run.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from rlm.testing.server import OWNER
from rlm_train import report

TASKS = 8
ROLLOUTS = 2
SIZES = (8_000, 12_000, 18_000, 27_000, 40_000, 60_000, 90_000, 130_000)
"""Characters of the contexts."""
ACCURACY = 0.95
REFERENCE_MODEL = "oolong-reference"
NO_MODEL = "a script with looked-up labels: it is NO LANGUAGE MODEL, and its scores say nothing about one"

_STOP_SECONDS = 20.0


class ServerError(Exception):
    """The model server cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """The model server of a run."""

    base_url: str
    model: str
    api_key: str | None
    note: str | None
    """What a reader of the scores must know."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m oolong.quickstart", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where runs are written")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        with _terminable(), model_server(os.environ) as server:
            _announce(console, server)
            run = arguments.output_dir / f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            command = evaluation(server, run)
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
        print(
            f"error: the evaluation ended with status {code}; it was: {shlex.join(command)}", file=sys.stderr
        )
        return code if code > 0 else 128 - code
    result = report.read_run(run)
    console.print()
    report.render(result, console, note=server.note)
    console.print(f"evaluated in {seconds:.0f} s", highlight=False)
    complete = len(result.rollouts) == TASKS * ROLLOUTS and all(rollout.ok for rollout in result.rollouts)
    return 0 if complete else 1


@contextlib.contextmanager
def model_server(environment: Mapping[str, str]) -> Iterator[Server]:
    """The server that the environment variables name, or the reference server.

    Raises:
        ServerError: the one that is named cannot be used.
    """
    base_url = environment.get("RLM_BASE_URL")
    if base_url:
        yield named_server(
            base_url, environment.get("RLM_MODEL") or None, environment.get("RLM_API_KEY") or None
        )
        return
    from oolong.policies.reference import ReferencePolicy
    from rlm.testing import serve

    policy = ReferencePolicy(accuracy=ACCURACY, sources=["wordnet"])
    with serve(policy, models=[REFERENCE_MODEL], record=False) as running:
        yield Server(running.base_url, running.model, None, f"{REFERENCE_MODEL} is {NO_MODEL}")


def named_server(base_url: str, model: str | None, api_key: str | None) -> Server:
    """Asks a server what it serves.

    Args:
        base_url: ends in /v1 at most servers.
        model: one of its models; None: the only one that it has.

    Raises:
        ServerError: it does not answer, refuses the key, or does not have the model.
    """
    base_url = base_url.rstrip("/").removesuffix("/chat/completions")
    models = _models(base_url, api_key)
    names = [str(entry.get("id")) for entry in models]
    if model is None:
        if len(names) != 1:
            listed = ", ".join(names[:20]) or "it lists none"
            raise ServerError(f"say with RLM_MODEL which model of {base_url} to use: {listed}")
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
        raise ServerError(f"RLM_BASE_URL={base_url} is no URL: it starts with http:// or https://") from None
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            entries = json.load(answer)["data"]
            return [entry for entry in entries if isinstance(entry, dict)]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            missing = (
                "it wants a key: set RLM_API_KEY" if api_key is None else "it refuses the key in RLM_API_KEY"
            )
            raise ServerError(f"{base_url}: {missing} (status {error.code})") from None
        raise ServerError(
            f"{base_url}/models answers with status {error.code}: RLM_BASE_URL usually ends in /v1"
        ) from None
    except urllib.error.URLError as error:
        raise ServerError(f"no model server answers at RLM_BASE_URL={base_url}: {error.reason}") from None
    except OSError as error:
        raise ServerError(f"no model server answers at RLM_BASE_URL={base_url}: {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            f"{base_url}/models is no list of models: is RLM_BASE_URL that of a model server?"
        ) from None


def evaluation(server: Server, run: Path) -> list[str]:
    """The evaluation command: verifiers' `vf-eval`, called `eval` before 0.4."""
    name = "vf-eval" if _verifiers_version() >= (0, 4) else "eval"
    arguments = [
        *("oolong", "-r", str(ROLLOUTS), "-m", server.model),
        *("--env.taskset.num-tasks", str(TASKS), "--env.taskset.sizes", json.dumps(SIZES)),
        *("--env.agent.runtime.type", "subprocess"),
        *("--client.base-url", server.base_url, "--client.api-key-var", "RLM_API_KEY"),
        *("--output-dir", str(run.parent), "--run.name", run.name, "--no-push"),
    ]
    if name == "eval":
        # Before 0.4 rollouts run in worker processes unless told otherwise: those import everything once more.
        arguments.append("--no-serve")
    return [str(Path(sys.executable).with_name(name)), *arguments]


def _verifiers_version() -> tuple[int, ...]:
    major, minor = importlib.metadata.version("verifiers").split(".")[:2]
    return int(major), int(minor)


def _announce(console: Console, server: Server) -> None:
    console.rule("OOLONG quickstart")
    console.print(f"model: {server.model} at {server.base_url}", highlight=False, markup=False)
    if server.note:
        console.print(server.note, style="bold yellow", highlight=False, markup=False)
        if server.model == REFERENCE_MODEL:
            console.print(
                "RLM_BASE_URL (and RLM_MODEL, RLM_API_KEY) name a real one.", style="dim", highlight=False
            )
    console.print(
        f"{TASKS} tasks x {ROLLOUTS} rollouts; verifiers takes some seconds to load\n",
        style="dim",
        highlight=False,
    )


def _run(command: Sequence[str], server: Server) -> int:
    """Runs the evaluation with its own progress display. An interrupt ends it before it ends us."""
    environment = dict(os.environ)
    environment["RLM_API_KEY"] = server.api_key or "none"
    if server.api_key is None and server.base_url.startswith("http://127.0.0.1"):
        environment["NO_PROXY"] = ",".join(filter(None, [environment.get("NO_PROXY"), "127.0.0.1"]))
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except BaseException:
        # On Ctrl-C it has had the signal too, and cleans up; a second one does not disturb it.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the run as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
