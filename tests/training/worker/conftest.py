"""verifiers' own environment workers as separate processes, and the check that they leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import psutil
import pytest
import verifiers.v1 as vf
from verifiers.v1.serve.client import EnvClient
from verifiers.v1.serve.server import EnvServer
from verifiers.v1.utils.loaders import resolve_env_config

from rlm.testing import ModelServer

if TYPE_CHECKING:
    AnyTrace: TypeAlias = vf.Trace[Any, Any, Any]

# The same server that prime-rl's `env-server` runs. It ends with the test run. Orphans of its workers become its children, so
# that a test sees them.
_SERVE = """
import ctypes, json, sys
from verifiers.v1.serve import serve_env

if __name__ == "__main__":
    prctl = ctypes.CDLL(None).prctl
    prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG: SIGTERM
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    serve_env(**json.loads(sys.argv[1]))
"""


class Trainer:
    """Asks an environment server for rollouts."""

    def __init__(self, address: str, tallies: ModuleType) -> None:
        self.client = EnvClient(address)
        self._tallies = tallies

    async def run(
        self,
        server: ModelServer,
        number: int = 0,
        *,
        lines: int = 100,
        model: str | None = None,
        client: dict[str, Any] | None = None,
        **sampling: Any,
    ) -> AnyTrace:
        """Runs one rollout of task `number`."""
        given = {"type": "eval", "base_url": server.base_url, "api_key_var": "RLM_TEST_KEY", **(client or {})}
        kind = vf.TrainClientConfig if given["type"] == "train" else vf.EvalClientConfig
        episode = await self.client.run(
            client=kind.model_validate(given),
            model=model or server.model,
            sampling=vf.SamplingConfig.model_validate(sampling),
            task_data=self._tallies.data_of(number, lines).model_dump(mode="json"),
        )
        return episode.traces[0]


class Worker:
    """An environment server of verifiers: one worker, or a broker over several."""

    def __init__(self, folder: Path, tallies: ModuleType, workers: int, harness: dict[str, Any]) -> None:
        self.folder = folder
        self._tallies = tallies
        # The path of a socket is limited to 108 bytes, and pytest's folders are deep.
        self._sockets = tempfile.TemporaryDirectory(prefix="rlm-test-")
        self.address = f"ipc://{self._sockets.name}/server"
        self.home, self.temporary = folder / "home", folder / "tmp"
        for path in (self.home, self.temporary):
            path.mkdir()
        options = {
            "max_workers": workers,
            "elastic": False,
            "address": self.address,
            "config_data": config_of(harness),
        }
        script = folder / "serve.py"  # a file, because the broker's workers import it again
        script.write_text(_SERVE)
        self._log = (folder / "worker.log").open("w+")
        self.process = psutil.Popen(
            [sys.executable, str(script), json.dumps(options)],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parent),
                "HOME": str(self.home),
                "TMPDIR": str(self.temporary),
                "RLM_TEST_KEY": "none",
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._trainer: Trainer | None = None

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def children(self) -> list[psutil.Process]:
        """All processes below the server."""
        return self.process.children(recursive=True)

    async def ready(self) -> Trainer:
        """Waits until the server answers, and returns a client."""
        if self._trainer is None:
            self._trainer = Trainer(self.address, self._tallies)
            while not await self._trainer.client.health(timeout=0.5):
                if not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE:
                    pytest.fail(f"the worker did not start:\n{self.log[-3000:]}")
        return self._trainer

    async def run(self, server: ModelServer, number: int = 0, **options: Any) -> AnyTrace:
        """Runs one rollout; see `Trainer.run`."""
        return await (await self.ready()).run(server, number, **options)

    async def close(self) -> None:
        """Closes the client. Call it before the test's event loop ends."""
        if self._trainer is not None:
            await self._trainer.client.close()
            self._trainer = None

    async def left_by_rollouts(self) -> list[psutil.Process]:
        """Processes and folders that finished rollouts have left behind. Not counted: the supervisor, the fork server and the
        REPL that is forked in advance, which has no folder yet. They stay for the next rollouts."""
        return await left_of([child for child in self.children if _folder_of(child) not in (None, "/")])

    def end(self) -> None:
        """Ends the server as prime-rl would, and kills the processes that it should have ended."""
        left: list[psutil.Process] = []
        try:
            if self.process.is_running():
                left = self.children
                self.process.terminate()
                self.process.wait(30)
        finally:
            _, alive = psutil.wait_procs(left, timeout=10)
            for process in alive:
                process.kill()
            if self.process.is_running():
                self.process.kill()
            self._log.close()
            self._sockets.cleanup()
        assert not alive, f"the worker left {alive}"
        assert not list(self.temporary.glob("rlm-*"))


async def left_of(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Waits until the processes have ended, at most half a minute. Returns those that have not."""
    deadline = asyncio.get_running_loop().time() + 30
    alive = list(processes)
    while alive and asyncio.get_running_loop().time() < deadline:
        alive = [process for process in alive if _runs(process)]
        await asyncio.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    # An orphan stays a zombie until the server, its new parent, ends.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _folder_of(process: psutil.Process) -> str | None:
    try:
        return process.cwd()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None


@pytest.fixture
def ended() -> Callable[[Iterable[psutil.Process]], Awaitable[list[psutil.Process]]]:
    return left_of


def config_of(harness: dict[str, Any]) -> dict[str, Any]:
    agent = {"harness": {"id": "rlm-train", **harness}, "runtime": {"type": "subprocess"}}
    return {"taskset": {"id": "tallies"}, "agent": agent}


class StartWorker(Protocol):
    def __call__(self, workers: int = 1, **harness: Any) -> Worker: ...


@pytest.fixture(scope="session")
def tallies() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tallies", Path(__file__).with_name("tallies.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tallies"] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def workers_in(folder: Path, tallies: ModuleType) -> Iterator[tuple[StartWorker, list[Worker]]]:
    started: list[Worker] = []

    def start(workers: int = 1, **harness: Any) -> Worker:
        own = folder / f"worker-{len(started)}"
        own.mkdir()
        started.append(Worker(own, tallies, workers, harness))
        return started[-1]

    try:
        yield start, started
    finally:
        for worker in started:
            worker.end()


@pytest.fixture
async def start_worker(tmp_path: Path, tallies: ModuleType) -> AsyncIterator[StartWorker]:
    """Starts an environment server. Processes that still run at the end of the test fail the test."""
    with workers_in(tmp_path, tallies) as (start, started):
        yield start
        for worker in started:
            await worker.close()


@pytest.fixture(scope="module")
def shared_worker(tmp_path_factory: pytest.TempPathFactory, tallies: ModuleType) -> Iterator[Worker]:
    """One worker for the tests of a module, because it takes seconds to start."""
    with workers_in(tmp_path_factory.mktemp("shared"), tallies) as (start, _):
        yield start(cell_timeout=3.0)


@pytest.fixture
async def worker(shared_worker: Worker) -> AsyncIterator[Worker]:
    """The shared worker, with a client on the test's event loop. A test must leave it unchanged."""
    await shared_worker.ready()
    yield shared_worker
    await shared_worker.close()


@pytest.fixture
async def serve_here(tallies: ModuleType) -> AsyncIterator[Callable[..., Trainer]]:
    """Runs an environment server on the test's own event loop, without starting a process."""
    with tempfile.TemporaryDirectory(prefix="rlm-test-") as sockets:
        started: list[tuple[Trainer, asyncio.Task[None]]] = []

        def serve(**harness: Any) -> Trainer:
            address = f"ipc://{sockets}/{len(started)}"
            server = EnvServer(resolve_env_config(config_of(harness)), address)
            started.append((Trainer(address, tallies), asyncio.create_task(server.run())))
            return started[-1][0]

        yield serve
        for trainer, server in started:
            await trainer.client.close()
            server.cancel()
            await server
