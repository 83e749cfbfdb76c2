"""Runs everything against a real vLLM: checks of the engine's requests, then OOLONG rollouts by a real small model.

    python -m scripts.e2e_vllm [--model NAME] [--tasks N] [--temperature T ...] [--only plumbing|rollouts]

It uses the vLLM that RLM_BASE_URL (with RLM_MODEL, RLM_API_KEY) names, or else starts `scripts.vllm_cpu` on a free port until
it ends. verifiers' own command runs the rollouts of `configs/eval/oolong-small-model.toml`, and writes the trajectories to
`outputs/`. The exit status is 1 if a check failed or a rollout was not scored. The score itself passes or fails nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from rlm_train import report
from rlm_train.quickstart import ServerError, named_server
from scripts.cpu_models import MODELS
from scripts.plumbing import CHECKS, VLLM, CheckFailedError

CONFIG = Path("configs/eval/oolong-small-model.toml")
WINDOW = 4096
"""Tokens: enough for the rollouts, and few enough that no single prompt keeps a CPU busy for minutes."""


@contextlib.contextmanager
def vllm(model: str) -> Iterator[VLLM]:
    """The server that the environment variables name, or else one that is started here.

    Raises:
        ServerError: the named server cannot be used, or vLLM did not start.
    """
    if base_url := os.environ.get("RLM_BASE_URL"):
        named = named_server(base_url, os.environ.get("RLM_MODEL"), os.environ.get("RLM_API_KEY"))
        yield VLLM(named.base_url, named.model, named.api_key)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "scripts.vllm_cpu", "--model", model, "--port", str(port)]
    with subprocess.Popen(
        [*command, "--max-model-len", str(WINDOW)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            # One line; none if the server did not start, and then it has printed the cause.
            if not process.stdout.readline().startswith("ready: "):
                raise ServerError("vLLM could not be started")
            yield VLLM(f"http://127.0.0.1:{port}/v1", model, os.environ.get("RLM_API_KEY"))
        finally:
            process.send_signal(signal.SIGTERM)


def check_plumbing(server: VLLM, console: Console) -> bool:
    """Runs every check, prints its result, and returns whether all passed."""
    passed = True
    for name, check in CHECKS.items():
        started = time.monotonic()
        try:
            mark, found = "ok", asyncio.run(check(server))
        except CheckFailedError as error:
            passed, mark, found = False, "FAILED", str(error)
        seconds = time.monotonic() - started
        console.print(f"{mark:6}  {name}: {found} ({seconds:.0f} s)", markup=False, highlight=False)
    return passed


def evaluate(server: VLLM, tasks: int, temperature: float, console: Console) -> bool:
    """Runs the rollouts, prints the table, and returns whether all were scored."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = Path("outputs") / f"e2e-vllm-{server.model}-t{temperature:g}-{stamp}-{os.getpid()}"
    command = [
        *(str(Path(sys.executable).with_name("vf-eval")), "@", str(CONFIG), "-m", server.model),
        *("--client.base-url", server.base_url, "--client.api-key-var", "RLM_API_KEY"),
        *("--env.taskset.id", "oolong", "--env.taskset.num-tasks", str(tasks)),
        *("--sampling.temperature", str(temperature)),
        *("--output-dir", str(run.parent), "--run.name", run.name, "--no-push"),
    ]
    before = asyncio.run(server.metrics())
    started = time.monotonic()
    status = subprocess.run(
        command, env={**os.environ, "RLM_API_KEY": server.api_key or "none"}, check=False
    ).returncode
    seconds = time.monotonic() - started
    if status != 0:
        console.print(f"vf-eval ended with status {status}", style="red")
        return False
    after = asyncio.run(server.metrics())
    result = report.read_run(run)
    report.render(result, console, note=f"temperature {temperature:g}, {tasks} tasks, {seconds:.0f} s")
    cached, asked = (
        after[name] - before[name] for name in ("prefix_cache_hits_total", "prefix_cache_queries_total")
    )
    console.print(
        f"prefix cache: {cached / max(asked, 1):.0%} of {asked:,.0f} prompt tokens", highlight=False
    )
    return len(result.rollouts) == tasks and all(rollout.ok for rollout in result.rollouts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.e2e_vllm", description=__doc__)
    parser.add_argument(
        "--model",
        choices=list(MODELS),
        default="qwen2.5-coder-1.5b",
        help="model of the server that is started",
    )
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0])
    parser.add_argument("--only", choices=("plumbing", "rollouts"))
    options = parser.parse_args(arguments)
    console = Console()
    # Makes SIGTERM, too, stop the server that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    passed = True
    try:
        with vllm(options.model) as server:
            console.print(f"{server.model} at {server.base_url}", highlight=False)
            if options.only != "rollouts":
                passed = check_plumbing(server, console)
            if options.only != "plumbing":
                for temperature in options.temperature:
                    passed = evaluate(server, options.tasks, temperature, console) and passed
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
