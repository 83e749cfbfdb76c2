"""Runs of prime-rl's own programs with our environment. Only the model server and the trainer are stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from oolong.policies.reference import ReferencePolicy, is_root
from rlm.testing import ChatRequest, in_background, repl_block
from rlm_train.testing import Generation, InferenceServer, build_tokenizer, generations_of

HERE = Path(__file__).parent
VARIABLE = "PRIME_RL_PYTHON"
SECONDS = 1_200
"""Most seconds of a whole run. On an idle machine it takes 1 to 2 minutes, mostly for imports."""

GIVE_UP = repl_block(
    'reply = llm_query("Is it worth it?")\nanswer["content"], answer["ready"] = "no idea", True'
)


class Student:
    """The reference policy plays half of the rollouts of a question, and the others give up, so that rewards differ in every
    group."""

    def __init__(self) -> None:
        self._reference = ReferencePolicy(accuracy=1.0, sources=["wordnet"])
        self._good: dict[str, bool] = {}
        self._asked: dict[str, int] = defaultdict(int)

    def __call__(self, request: ChatRequest) -> str:
        if not is_root(request.messages):
            return "no" if request.text == "Is it worth it?" else self._reference(request)
        rollout = request.headers["x-session-id"]
        if rollout not in self._good:
            question = request.messages[1]["content"]
            self._good[rollout] = self._asked[question] % 2 == 0
            self._asked[question] += 1
        return self._reference(request) if self._good[rollout] else GIVE_UP


@dataclass(frozen=True)
class Sample:
    """A sample that the trainer gets, and its origin."""

    step: int
    source: str
    token_ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    advantages: list[float]
    rl_weights: list[float] | None
    temperatures: list[float]
    generations: list[Generation]

    @property
    def rollout(self) -> str:
        """Id of the trace."""
        [session] = {generation.session for generation in self.generations}
        assert session is not None
        return session

    @property
    def is_root(self) -> bool:
        return is_root(self.generations[0].request.messages)

    def trained(self, column: list[float]) -> set[float]:
        """The values of a column on the trained tokens."""
        return {value for value, marked in zip(column, self.mask, strict=True) if marked}


@dataclass
class Result:
    """A finished run."""

    folder: Path
    steps: int
    server: InferenceServer
    logs: dict[str, str]
    codes: dict[str, int]
    left: list[str]
    """Processes that did not end with the program that started them."""
    seconds: dict[str, float] = field(default_factory=dict)

    def samples(self, *, whole: bool = True) -> list[Sample]:
        """Samples of all steps, in their order.

        Args:
            whole: the samples are not cut: then what they came from is found, or an error is raised.
        """
        found = []
        for step in range(1, self.steps + 1):
            for row in json.loads((self.folder / f"samples_{step}.json").read_text()):
                [source] = set(row.pop("env_names"))
                generations = (
                    generations_of(row["token_ids"], row["mask"], row["logprobs"], self.server.generations)
                    if whole
                    else []
                )
                found.append(Sample(step=step, source=source, generations=generations, **row))
        return found

    def traces(self, pattern: str = "**/traces.jsonl") -> dict[str, dict[str, Any]]:
        """prime-rl's records of rollouts, by the trace's id."""
        found = {}
        for file in self.folder.glob(pattern):
            for line in file.read_text().splitlines():
                for trace in json.loads(line).get("traces", ()):
                    found[trace["id"]] = trace
        return found

    def shipped(self) -> list[dict[str, Any]]:
        """The traces whose samples the trainer got."""
        return list(self.traces("rollouts/*/train/effective/traces.jsonl").values())


class PrimeRL:
    """Programs of prime-rl."""

    def __init__(self, python: Path) -> None:
        self.python = python

    def dry_run(self, file: Path, folder: Path) -> Path:
        """Runs `rl @ file --dry-run`. Returns the run's folder, with a configuration for each program."""
        command = [str(self.python.with_name("rl")), "@", str(file), "--dry-run", "--output-dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=_environment())
        assert done.returncode == 0, done.stdout + done.stderr
        [run] = [path.parent for path in folder.glob("*/configs")]
        return run

    def train(self, run: Path, steps: int, server: InferenceServer) -> Result:
        """Runs environment servers, the trainer's stand-in and the orchestrator, until the orchestrator ends."""
        configs = run / "configs"
        envs = {
            f"{path.parent.name}-{path.stem}": [str(self.python.with_name("env-server")), "@", str(path)]
            for path in sorted(configs.glob("envs/*/*.json"))
        }
        orchestrator = [str(self.python), str(HERE / "on_cpu.py"), "orchestrator", "@"]
        commands = {
            **envs,
            "trainer": [str(self.python), str(HERE / "trainer.py"), str(run), str(steps)],
            "orchestrator": [*orchestrator, str(configs / "orchestrator.json")],
        }
        started = {name: _Program(name, command, run) for name, command in commands.items()}
        begin = time.monotonic()
        try:
            main = started["orchestrator"]
            while main.process.is_running() and main.process.status() != psutil.STATUS_ZOMBIE:
                broken = [p for p in started.values() if p is not main and p.process.poll()]
                if broken or time.monotonic() - begin > SECONDS:
                    break
                with_timeout(main)
            seconds = time.monotonic() - begin
            codes = {name: program.end() for name, program in started.items()}
            children = {child for program in started.values() for child in program.children}
            _, alive = psutil.wait_procs(children, timeout=20)
            left = [" ".join(child.cmdline()) for child in alive]
        finally:
            for program in started.values():
                program.kill()
        logs = {name: program.log for name, program in started.items()}
        return Result(run, steps, server, logs, codes, left, {"orchestrator": seconds})


class _Program:
    def __init__(self, name: str, command: list[str], run: Path) -> None:
        self._path = run / f"{name}.log"
        with self._path.open("w") as log:
            self.process = psutil.Popen(
                command, cwd=run, env=_environment(), stdout=log, stderr=subprocess.STDOUT
            )
        self.children: set[psutil.Process] = set()

    @property
    def log(self) -> str:
        return self._path.read_text()

    def end(self) -> int:
        """Ends a process as prime-rl's launcher does. Returns its exit status."""
        if self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            self.children.update(self.process.children(recursive=True))
            self.process.terminate()
        return int(self.process.wait(60))

    def kill(self) -> None:
        for child in self.children:
            if child.is_running():
                child.kill()
        if self.process.is_running():
            for child in self.process.children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()


def with_timeout(program: _Program) -> None:
    """Waits for the end of a process, at most a second."""
    with contextlib.suppress(psutil.TimeoutExpired):
        program.process.wait(1)


def _environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RLM_", "PRL_"))}
    return {**clean, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def prime_rl() -> PrimeRL:
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(
            f"{VARIABLE} is not set: it names the Python of a prime-rl checkout (make prime-rl makes one)"
        )
    python = Path(named).absolute()
    check = subprocess.run(
        [str(python), "-c", "import prime_rl.configs.rl, rlm_train, oolong"], capture_output=True, text=True
    )
    if check.returncode:
        pytest.fail(f"{python} has not both prime-rl and our packages:\n{check.stderr[-2000:]}")
    return PrimeRL(python)


Train = Callable[[str, int], Result]


@pytest.fixture(scope="session")
def train(prime_rl: PrimeRL, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs a configuration for some steps: a template with the places {model}, {url} and {port}."""
    folder = Path(os.environ.get("PRIME_RL_TOKENIZER") or build_tokenizer(tmp_path_factory.mktemp("model")))

    def train(template: str, steps: int) -> Result:
        place = tmp_path_factory.mktemp("run")
        server = InferenceServer(Student(), folder, models=[str(folder)], spell=True)
        with in_background(server):
            text = template.replace("{model}", str(folder)).replace("{url}", server.base_url)
            file = place / "rl.toml"
            file.write_text(text.replace("{port}", str(_free_ports(8))))
            return prime_rl.train(prime_rl.dry_run(file, place / "out"), steps, server)

    return train


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    import random
    import socket
    from contextlib import ExitStack

    while True:
        first = random.randrange(20_000, 30_000)
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    sock = stack.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
