"""However a REPL or its host ends, no process, descriptor, thread or file is left."""

# Looking at files and processes blocks the event loop, on which nothing else runs.
# ruff: noqa: ASYNC222, ASYNC240

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from rlm.context import Context
from rlm.environments import REPL, Query, QueryReply, REPLSettings, SessionSpec, make_environment
from rlm.environments.fork_server import ForkServer, fork_server
from rlm.environments.isolation import Isolation, SandboxSettings

from .conftest import LEVELS, NAMESPACE, find, named

OpenREPL = Callable[..., Awaitable[REPL]]

HOST = """
import asyncio, os, sys
from rlm.context import Context
from rlm.environments import QueryReply, SessionSpec, make_environment

async def answer(query):
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    if {stay}:
        await asyncio.Event().wait()
    return [QueryReply("go")]

async def main():
    environment = make_environment("local", isolation={isolation!r})
    spec = SessionSpec(contexts=[Context("x" * 2_000_000)])
    repls = [await environment.open(spec, answer) for _ in range(2)]
    for repl in repls:
        result = await repl.execute('''
import os, subprocess, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
        while True: time.sleep(1000)
    os._exit(0)
open("left.txt", "w").write("x")
{namespace}
print(namespace, os.getpid(), child.pid, int(os.read(read, 20)))
''')
        print(result.stdout, end="", flush=True)
    await repls[0].execute("llm_query('x')" + {code!r})

asyncio.run(main())
"""


@pytest.fixture(params=LEVELS)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Every isolation of this machine."""
    level: Isolation = request.param
    return level


@pytest.fixture
def server(isolation: Isolation) -> ForkServer:
    """The fork server of REPLs with this isolation."""
    return fork_server(None if isolation == "process" else SandboxSettings())


async def answer(query: Query) -> list[QueryReply]:
    return [QueryReply(f"{query.kind}:{prompt}") for prompt in query.prompts]


def start_host(
    isolation: Isolation, code: str = "", *, stay: bool = True
) -> tuple[subprocess.Popen[str], list[psutil.Process], Path]:
    """Starts a program with two REPLs in the middle of a cell. Returns it, the processes of the REPLs, and their folder."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST.format(stay=stay, code=code, isolation=isolation, namespace=NAMESPACE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert host.stdin is not None
    assert host.stdout is not None
    for _ in range(2):
        assert len(named(host.stdout.readline())) == 3
    assert host.stdout.readline() == "ready\n"
    processes = psutil.Process(host.pid).children(recursive=True)
    assert "control.local_supervisor" in " ".join(processes[0].cmdline())
    assert len(processes) >= 9  # with the fork server, and the worker that is forked ahead
    folders = list(Path(tempfile.gettempdir()).glob(f"rlm-{host.pid}-*"))
    assert len(folders) == 1
    with host.stdin as stdin:
        stdin.write("go on\n")
    return host, processes, folders[0]


def check_gone(host: subprocess.Popen[str], processes: list[psutil.Process], folder: Path) -> None:
    host.wait()
    assert host.stdout is not None
    host.stdout.close()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert not folder.exists()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_host_ends_everything(isolation: Isolation, signum: signal.Signals) -> None:
    host, processes, folder = start_host(isolation)
    host.send_signal(signum)
    check_gone(host, processes, folder)


def test_a_host_that_ends_without_closing_leaves_nothing(isolation: Isolation) -> None:
    check_gone(*start_host(isolation, stay=False))


def test_a_host_killed_while_its_cell_runs_c_code_leaves_nothing(isolation: Isolation) -> None:
    host, processes, folder = start_host(isolation, "\nsum(range(10**12))", stay=False)
    host.kill()
    check_gone(host, processes, folder)


async def settled_descriptors(parent: psutil.Process) -> list[int]:
    """The number of descriptors of each descendant. The worker that is forked ahead opens and closes some when it starts, so
    two equal readings are needed."""
    readings: list[list[int]] = [[]]
    while len(readings) < 2 or readings[-1] != readings[-2]:
        await asyncio.sleep(0.1)
        readings.append([process.num_fds() for process in parent.children(recursive=True)])
    return readings[-1]


async def test_close_leaves_nothing(open_repl: OpenREPL) -> None:
    await (await open_repl()).close()  # starts the fork server, and asyncio's own objects
    parent = psutil.Process()
    before = parent.num_fds(), threading.active_count(), len(parent.children(recursive=True))
    inside = await settled_descriptors(parent)
    for _ in range(5):
        repl = await open_repl(["some", "context"])
        result = await repl.execute(
            "import os, subprocess, tempfile\nopen('file', 'w').write('x'); tempfile.mkdtemp()\n"
            "os.symlink('/', 'link'); os.makedirs('a/b/c'); os.mkfifo('fifo')\n"
            "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\nprint(os.getcwd())"
        )
        (worker,) = await find(repl, "os.getpid()")
        folder = Path(f"/proc/{worker.pid}/root{result.stdout.strip()}")
        assert (folder / "file").is_file()
        place = folder.resolve()
        assert str(place).startswith(tempfile.gettempdir())
        await repl.close()
        assert not worker.is_running()
        assert not place.exists()
    assert Path("/usr").is_dir()
    del repl
    after = parent.num_fds(), threading.active_count(), len(parent.children(recursive=True))
    assert after[1:] == before[1:]
    assert after[0] <= before[0] + 1  # the file of the last context
    assert await settled_descriptors(parent) == inside
    assert not list(Path("/dev/shm").glob("*rlm*"))


async def test_orphans_of_a_killed_fork_server_are_ended(open_repl: OpenREPL) -> None:
    repl = await open_repl("x")
    await repl.execute(
        "import subprocess; child = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    )
    worker, child = await find(repl, "os.getpid()", "child.pid")
    parent = worker.parent()
    assert parent is not None
    cell = asyncio.create_task(repl.execute("import time; time.sleep(1000)"))
    parent.kill()
    assert (await cell).status == "died"
    assert not child.is_running()


async def test_a_repl_changes_nothing_in_the_host(repl: REPL, capfd: pytest.CaptureFixture[str]) -> None:
    before = Path.cwd(), sys.stdout, signal.getsignal(signal.SIGINT), dict(os.environ)
    await repl.execute("import os, sys; os.chdir('/'); print('x'); os.environ['A'] = 'b'; sys.exit(1)")
    assert (Path.cwd(), sys.stdout, signal.getsignal(signal.SIGINT), dict(os.environ)) == before
    assert capfd.readouterr() == ("", "")


def test_eight_threads_with_loops_of_their_own_do_not_mix_output() -> None:
    wrong: list[str] = []

    async def rollout(name: int) -> None:
        environment = make_environment("local")
        repl = await environment.open(SessionSpec(contexts=[Context(f"context {name}")]), answer)
        for number in range(20):
            result = await repl.execute(f"print({name}, {number}, context)\nllm_query('{name}.{number}')")
            if result.stdout != f"{name} {number} context {name}\n'llm:{name}.{number}'\n":
                wrong.append(result.stdout)
        await repl.close()

    threads = [threading.Thread(target=lambda n=n: asyncio.run(rollout(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


async def test_many_repls_on_one_loop_do_not_mix() -> None:
    environment = make_environment("local")
    context = Context("shared " * 1000)

    async def rollout(name: int) -> str:
        repl = await environment.open(SessionSpec(contexts=[context]), answer)
        try:
            await repl.execute(f"x = {name}")
            return (await repl.execute("x, len(context)")).stdout
        finally:
            await repl.close()

    outputs = await asyncio.gather(*(rollout(name) for name in range(48)))
    assert outputs == [f"({name}, 7000)\n" for name in range(48)]


def run_elsewhere(queue: multiprocessing.SimpleQueue[str]) -> None:
    """Runs one cell in one REPL. Called in another process."""

    async def run() -> str:
        repl = await make_environment("local").open(SessionSpec(contexts=[Context("there")]), answer)
        try:
            return (await repl.execute("context + llm_query('x')")).stdout
        finally:
            await repl.close()

    queue.put(asyncio.run(run()))


@pytest.mark.timeout(180)
async def test_hundreds_of_cells_can_be_stopped_at_once() -> None:
    """The orders and reports are more than the buffers of the streams hold."""
    environment = make_environment("local", isolation="process")
    running = asyncio.Semaphore(0)

    async def note(query: Query) -> list[QueryReply]:
        running.release()
        return [QueryReply("go on") for _ in query.prompts]

    spec = SessionSpec(settings=REPLSettings(checkpoint_bytes=0, interrupt_grace=60.0))
    repls = [await environment.open(spec, note) for _ in range(700)]
    cells = [asyncio.create_task(repl.execute("llm_query('x')\nwhile True: pass")) for repl in repls[:4]]
    cells += [
        asyncio.create_task(repl.execute("import time\nllm_query('x')\ntime.sleep(600)"))
        for repl in repls[4:]
    ]
    for _ in repls:
        await running.acquire()
    for repl in repls:
        repl.interrupt("enough")
    results = await asyncio.gather(*cells)
    assert {result.status for result in results} == {"interrupted"}
    assert all(str(result.error).endswith(": enough") for result in results)
    await asyncio.gather(*(repl.close() for repl in repls))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_a_forked_or_spawned_host_has_repls_of_its_own(open_repl: OpenREPL, method: str) -> None:
    repl = await open_repl("here")
    await repl.execute("kept = 1")
    processes = multiprocessing.get_context(method)
    queue = processes.SimpleQueue()
    child: multiprocessing.Process = processes.Process(  # type: ignore[attr-defined]
        target=run_elsewhere, args=(queue,)
    )
    child.start()
    assert await asyncio.to_thread(queue.get) == "'therellm:x'\n"
    await asyncio.to_thread(child.join)
    assert child.exitcode == 0
    queue.close()
    assert (await repl.execute("kept, context")).stdout == "(1, 'here')\n"


async def test_a_forked_child_of_the_host_does_not_keep_a_repl_alive(open_repl: OpenREPL) -> None:
    repl = await open_repl()
    (worker,) = await find(repl, "os.getpid()")
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.read(read, 1)
        os._exit(0)
    try:
        await repl.close()
        assert not worker.is_running()
    finally:
        os.write(write, b"x")
        os.waitpid(holder, 0)
        os.close(read)
        os.close(write)


async def test_the_fork_server_starts_anew_after_it_was_closed(
    open_repl: OpenREPL, server: ForkServer
) -> None:
    await (await open_repl()).close()
    server.close()
    assert not server.running
    assert (await (await open_repl("again")).execute("context")).stdout == "'again'\n"


async def supervisor_of(repl: REPL) -> tuple[psutil.Process, list[psutil.Process], Path]:
    """Starts a child in a REPL. Returns its supervisor; its fork server, worker and child; and the folder of all."""
    await repl.execute(
        "import subprocess; child = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    )
    worker, child = await find(repl, "os.getpid()", "child.pid")
    parent = worker.parent()
    assert parent is not None
    supervisor = parent.parent()
    assert supervisor is not None
    assert "control.local_supervisor" in " ".join(supervisor.cmdline())
    used = {file for file in Path(tempfile.gettempdir()).glob(f"rlm-{os.getpid()}-*") if file.is_dir()}
    assert used
    return supervisor, [parent, worker, child], max(used, key=lambda folder: folder.stat().st_ctime)


async def test_a_fork_server_that_was_killed_is_started_anew(open_repl: OpenREPL, server: ForkServer) -> None:
    server.close()
    repl = await open_repl()
    supervisor, _, folder = await supervisor_of(repl)
    await repl.close()
    assert folder.is_dir()
    supervisor.kill()
    assert (await (await open_repl("again")).execute("context")).stdout == "'again'\n"
    assert not folder.exists()


async def test_processes_of_a_killed_supervisor_are_ended(open_repl: OpenREPL, server: ForkServer) -> None:
    server.close()
    repl = await open_repl("x")
    supervisor, processes, folder = await supervisor_of(repl)
    supervisor.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    died = await repl.execute("context")
    if died.status == "died":  # the host had not noticed the end yet
        died = await repl.execute("context")
    assert died.stdout == "'x'\n"
    assert not folder.exists()


async def test_daemons_end_with_their_worker(open_repl: OpenREPL) -> None:
    daemon = (
        "import os\nread, write = os.pipe()\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.setsid()\n"
        "        os.write(write, str(os.getpid()).encode())\n        import time; time.sleep(1000)\n"
        "    os._exit(0)\ndaemon = int(os.read(read, 20))"
    )
    first, second = await open_repl(), await open_repl()
    daemons = []
    for repl in (first, second):
        await repl.execute(daemon)
        daemons += await find(repl, "daemon")
    await first.close()
    assert [daemon.is_running() for daemon in daemons] == [False, True]
    await second.close()
    assert not daemons[1].is_running()


@pytest.mark.parametrize("steps", range(1, 12))
async def test_a_start_that_is_cancelled_leaves_the_loop_whole(open_repl: OpenREPL, steps: int) -> None:
    """Its connections are closed. A later REPL gets the same numbers of descriptors."""
    await open_repl()  # starts the fork server
    start = asyncio.ensure_future(open_repl())
    for _ in range(steps):
        await asyncio.sleep(0)
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    for repl in await asyncio.gather(*(open_repl() for _ in range(4))):
        assert (await repl.execute("print(6 * 7)")).stdout == "42\n"


async def test_a_repl_can_import_installed_packages_but_not_this_folder(repl: REPL) -> None:
    result = await repl.execute("import psutil, sys\nprint(psutil.__name__, '' in sys.path, *sys.path)")
    assert result.status == "ok", result.stderr
    assert result.stdout.startswith("psutil False ")
    assert str(Path(__file__).parents[3]) + " " not in result.stdout + " "
    assert (await repl.execute("import worker")).status == "error"


async def test_a_repl_starts_after_the_folder_of_temporary_files_was_deleted(
    open_repl: OpenREPL, server: ForkServer
) -> None:
    server.close()
    repl = await open_repl()
    _, _, folder = await supervisor_of(repl)
    await repl.close()
    for part in folder.iterdir():
        part.rmdir()
    folder.rmdir()
    assert (await (await open_repl("again")).execute("context")).stdout == "'again'\n"
