"""The sandbox: what works in it, what code cannot reach from it, its settings, and machines that allow none."""

# Cells are long lines. File calls that block are fine: nothing else runs on the loop.
# ruff: noqa: ASYNC240, E501

from __future__ import annotations

import errno
import os
import py_compile
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rlm.context import Context
from rlm.environments import REPL, Query, QueryReply, REPLSettings, SessionSpec, make_environment
from rlm.environments.fork_server import fork_server
from rlm.environments.hidden_packages import hidden_paths, installed
from rlm.environments.isolation import SandboxSettings, probe
from rlm.environments.local import LocalEnvironment
from rlm.errors import ConfigError, REPLError
from rlm.repl.worker.sandbox import seccomp, syscalls

from .conftest import find

OpenREPL = Callable[..., Awaitable[REPL]]

pytestmark = pytest.mark.skipif(probe().level != "sandbox", reason=f"no sandbox: {probe().reason}")


async def answer(query: Query) -> list[QueryReply]:
    return [QueryReply("go") for _ in query.prompts]


@pytest.fixture
async def sandboxed() -> AsyncIterator[OpenREPL]:
    """Opens a REPL in a sandbox with these settings."""
    opened: list[REPL] = []

    async def open_one(*, limits: dict[str, int] | None = None, **settings: Any) -> REPL:
        environment = LocalEnvironment(isolation="sandbox!", **settings)
        spec = SessionSpec(contexts=[Context("the context")], settings=REPLSettings(limits=limits or {}))
        opened.append(await environment.open(spec, answer))
        return opened[-1]

    yield open_one
    for repl in opened:
        await repl.close()


async def printed(repl: REPL, code: str) -> str:
    result = await repl.execute(code)
    assert result.status == "ok", result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nasync def f():\n    await asyncio.sleep(0); return 'fine'\nprint(asyncio.run(f()))",
        "import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p: assert p.map(abs, [-1, 2]) == [1, 2]\nprint('fine')",
        "import concurrent.futures as c\nwith c.ProcessPoolExecutor(2, c.process.mp.get_context('spawn')) as p: print(p.submit(str, 'fine').result())",
        "import multiprocessing.shared_memory as s\nm = s.SharedMemory(create=True, size=9); m.buf[0] = 1\nn = s.SharedMemory(m.name); assert n.buf[0] == 1\nn.close(); m.close(); m.unlink(); print('fine')",
        "import multiprocessing as m\nwith m.Lock(): print('fine')",
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(\"fine\")'], capture_output=True, text=True, check=True).stdout)",
        "import subprocess\nprint(subprocess.run('echo fine | sort | tr a a', shell=True, capture_output=True, text=True, check=True).stdout)",
        "import numpy; assert numpy.linalg.inv(numpy.eye(2)).sum() == 2; print('fine')",
        "import sqlite3, ssl, decimal, lzma, zoneinfo, ctypes, readline; sqlite3.connect('db').execute('create table t(x)'); print('fine')",
        "import tempfile, os\nwith tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').write('fine'); print(open(d + '/x').read())",
        "import getpass, pathlib, os; assert getpass.getuser() == 'user' and str(pathlib.Path.home()) == os.getcwd(); print('fine')",
        "import os, secrets, uuid, random; secrets.token_hex(); uuid.uuid4(); open('/dev/null', 'w').write('x'); open('/dev/urandom', 'rb').read(9); print('fine')",
        "import psutil; assert psutil.Process().memory_info().rss and psutil.cpu_count(); print('fine')",
        "import os; os.chmod('.', 0o755); open('/tmp/x', 'w').write('y'); os.rename('/tmp/x', 'z'); os.truncate('z', 0); os.link('z', 'w'); print('fine')",
        "import threading, queue; q = queue.Queue(); threading.Thread(target=q.put, args=['fine']).start(); print(q.get())",
        "import mmap; m = mmap.mmap(-1, 9); m[0] = 1; print('fine')",
        "import time, datetime; time.localtime(); datetime.datetime.now().astimezone(); print('fine')",
        "import importlib.metadata as m; assert m.version('psutil'); print('fine')",
    ],
)  # fmt: skip
async def test_ordinary_code_works(sandboxed: OpenREPL, code: str) -> None:
    assert (await printed(await sandboxed(), code)).strip() == "fine"


async def test_only_granted_files_are_visible(sandboxed: OpenREPL) -> None:
    repl = await sandboxed()
    known = {"bin", "dev", "etc", "lib", "lib64", "proc", "sbin", "tmp", "usr", "var", ".hidden"}
    known |= {Path(path).parts[1] for path in SandboxSettings().plan()["visible"]}
    found = await printed(repl, "import os; print(*os.listdir('/'))")
    assert set(found.split()) <= known | {"lib32", "libx32", "nix", "gnu"}
    python = {Path(path).parts[2] for path in (sys.prefix, sys.base_prefix) if path.startswith("/tmp/")}
    mine = sorted({".shm", "repl"} | python)
    assert (
        await printed(repl, "print(*sorted(os.listdir('/tmp')), os.getcwd())")
        == f"{' '.join(mine)} /tmp/repl\n"
    )
    assert "src" not in await printed(repl, "print(*os.listdir('/usr'), *os.listdir('/usr/local'))")
    assert await printed(repl, "import socket; socket.gethostname()") == "'repl'\n"
    assert await printed(repl, "print(os.listdir('/sys') if os.path.exists('/sys') else 'none')") == "none\n"
    listing = "import os; [int(name) for name in os.listdir('/proc') if name.isdigit()]"
    assert (
        await printed(await sandboxed(), f"{listing} if os.path.exists('/proc/self') else [1, 2]")
        == "[1, 2]\n"
    )
    names = await printed(
        repl,
        "fds = [f'/proc/self/fd/{name}' for name in os.listdir('/proc/self/fd')]\n"
        "print({os.readlink(fd).split(':')[0] for fd in fds if os.path.lexists(fd)})",
    )
    assert eval(names) == {"pipe", "socket", "/dev/null"}


async def test_no_privileges_are_left(sandboxed: OpenREPL) -> None:
    code = "print(*[line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNewPrivs', 'Seccomp:'))])"
    values = (await printed(await sandboxed(), code)).split()
    assert [int(value, 16) for value in values[1::2]] == [0, 0, 0, 0, 0, 1, 2]


async def test_programs_inherit_the_namespaces_and_the_filter(sandboxed: OpenREPL) -> None:
    code = (
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', '''import socket, os\n"
        "for name in 'uts', 'user', 'net', 'pid', 'mnt': print(os.readlink('/proc/self/ns/' + name))\n"
        "print(socket.socket())'''], capture_output=True, text=True))"
    )
    repl = await sandboxed()
    said = await printed(repl, code)
    assert "PermissionError" in said
    for name in ("uts", "user", "net", "pid", "mnt"):
        mine = await printed(repl, f"import os; print(os.readlink('/proc/self/ns/{name}'))")
        assert mine.strip() in said
        assert mine.strip() != str(Path(f"/proc/self/ns/{name}").readlink())


async def test_the_first_process_of_the_namespace_cannot_be_reached(sandboxed: OpenREPL) -> None:
    repl = await sandboxed()
    code = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
for signum in range(1, 65):
    try:
        os.kill(1, signum)
    except OSError:
        pass
got = []
for path in ("mem", "environ", "maps", "root", "cwd", "exe"):
    try:
        got.append(os.listdir(f"/proc/1/{path}") if path in ("root", "cwd") else open(f"/proc/1/{path}", "rb").read(1))
    except OSError:
        pass
print(got, libc.ptrace(0x4206, 1, None, None))
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os._exit(0)  # an orphan, of which nothing must be left
    os._exit(0)
ended = os.waitpid(child, 0)
"""
    assert await printed(repl, code) == "[] -1\n"
    (worker,) = await find(repl, "os.getpid()")
    parent = worker.parent()
    assert parent is not None
    first = max((other for other in parent.children() if other.pid < worker.pid), key=lambda other: other.pid)
    assert (
        Path(f"/proc/{first.pid}/status").read_text().partition("NSpid:")[2].splitlines()[0].endswith("\t1")
    )
    for _ in range(100):
        left = await printed(repl, "print(sum(name.isdigit() for name in os.listdir('/proc')))")
        if left == "2\n":
            break
    assert left == "2\n"


async def test_proc_shows_no_file_that_is_for_root_alone(sandboxed: OpenREPL) -> None:
    code = """
import os
told = []
for name in {"keys", "key-users", *NAMES} & {*os.listdir("/proc")}:
    try:
        with open("/proc/" + name, "rb") as file:
            if file.read(100):
                told.append(name)
    except OSError:
        pass
told
"""
    names = [
        path.name for path in Path("/proc").iterdir() if path.is_file() and not path.stat().st_mode & 0o004
    ]
    assert await printed(await sandboxed(), f"NAMES = {names}\n{code}") == "[]\n"


async def test_code_cannot_watch_accesses_to_visible_files(sandboxed: OpenREPL) -> None:
    code = """
import fcntl, os
for path, command, argument in ((os.__file__, fcntl.F_SETLEASE, fcntl.F_RDLCK), ("/usr/lib", fcntl.F_NOTIFY, 1)):
    try:
        print(fcntl.fcntl(os.open(path, os.O_RDONLY), command, argument))
    except PermissionError:
        print("refused")
"""
    assert await printed(await sandboxed(), code) == "refused\nrefused\n"


async def test_a_signal_to_all_processes_reaches_this_repl_alone(sandboxed: OpenREPL) -> None:
    repl, other = await sandboxed(), await sandboxed()
    await other.execute("kept = 1")
    await printed(repl, "import os, signal, subprocess; child = subprocess.Popen(['sleep', '1000'])")
    result = await repl.execute(
        "os.kill(-1, signal.SIGKILL); print(child.wait())\nos.kill(0, signal.SIGKILL)"
    )
    assert result.stdout == "-9\n"
    assert result.status == "died"
    assert "SIGKILL" in str(result.error)
    assert await printed(other, "kept, context") == "(1, 'the context')\n"
    assert await printed(repl, "context") == "'the context'\n"


async def test_each_repl_has_a_scratch_directory_of_its_own(sandboxed: OpenREPL) -> None:
    first, second = await sandboxed(), await sandboxed()
    await printed(
        first, "open('/tmp/x', 'w').write('1'); open('/dev/shm/x', 'w').write('1'); open('x', 'w').write('1')"
    )
    assert await printed(
        second, "import os; print([os.path.exists(p) for p in ('/tmp/x', '/dev/shm/x', 'x')])"
    ) == ("[False, False, False]\n")
    (worker,) = await find(first, "os.getpid()")
    assert Path(f"/proc/{worker.pid}/root/tmp/x").read_text() == "1"
    await first.close()
    assert not worker.is_running()


async def test_readable_folders_are_read_only(sandboxed: OpenREPL, tmp_path: Path) -> None:
    folder, link, file = tmp_path / "folder", tmp_path / "link", tmp_path / "file.txt"
    folder.mkdir()
    (folder / "inside.txt").write_text("inside")
    link.symlink_to(folder)
    file.write_text("alone")
    (tmp_path / "beside.txt").write_text("beside")
    repl = await sandboxed(readable=[link, str(file)])
    assert (
        await printed(repl, f"open({str(link / 'inside.txt')!r}).read() + open({str(file)!r}).read()")
        == "'insidealone'\n"
    )
    assert (
        await printed(repl, f"import os; print(*sorted(os.listdir({str(tmp_path)!r})))")
        == "file.txt folder link\n"
    )
    for action in (f"open({str(folder / 'new')!r}, 'w')", f"os.unlink({str(folder / 'inside.txt')!r})"):
        assert "Read-only file system" in str((await repl.execute(action)).error)
    (folder / "later.txt").write_text("later")
    assert await printed(repl, f"open({str(folder / 'later.txt')!r}).read()") == "'later'\n"
    assert (
        await printed(await sandboxed(), f"os = __import__('os'); os.path.exists({str(folder)!r})")
        == "False\n"
    )


async def test_hidden_packages_cannot_be_imported_or_read(sandboxed: OpenREPL) -> None:
    plain, hiding = await sandboxed(), await sandboxed(hidden=["psutil", "Markdown_it.py"])
    code = "import {0}; print({0}.__name__)"
    assert await printed(plain, code.format("psutil")) == "psutil\n"
    for name in ("psutil", "markdown_it"):
        result = await hiding.execute(code.format(name))
        assert result.error == f"ModuleNotFoundError: {name} is hidden from the REPL by its sandbox"
    listing = "import os, sys\nprint([f for d in sys.path if d.endswith('packages') for f in os.listdir(d + '/psutil')])"
    assert await printed(hiding, listing) == "['__init__.py']\n"
    for name in ("verifiers", "oolong", "rlm_train"):
        result = await plain.execute(f"import {name}")
        assert str(result.error).startswith("ModuleNotFoundError")


def decide(which: int, number: int, *arguments: int, architecture: int | None = None) -> int | str:
    """Runs the filter on a system call. Returns 0, the number of an error, or "kill"."""
    words = {0: number, 4: architecture or (0xC000003E, 0xC00000B7)[which]}
    words |= {16 + 8 * place: argument for place, argument in enumerate(arguments)}
    accumulator, at, code = 0, 0, seccomp.instructions(which)
    while True:
        operation, if_so, if_not, operand = code[at]
        at += 1
        if operation == 0x06:
            return "kill" if operand >> 31 else 0 if operand == 0x7FFF0000 else operand & 0xFFFF
        if operation == 0x20:
            accumulator = words.get(operand, 0)
        elif operation == 0x54:
            accumulator &= operand
        else:
            tests = {
                0x15: accumulator == operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }
            at += if_so if tests[operation] else if_not


@pytest.mark.parametrize("which", syscalls.MACHINES.values(), ids=syscalls.MACHINES)
def test_the_filter_decides_as_the_tables_say(which: int) -> None:
    refused = {numbers[which] for numbers in seccomp.REFUSED.values()}
    absent = {numbers[which] for numbers in seccomp.ABSENT.values()}
    assert not refused & absent - {None}
    clone, socketpair = (56, 220)[which], (53, 199)[which]
    for number in range(600):
        expected = errno.EPERM if number in refused else errno.ENOSYS if number in absent else 0
        if number != socketpair:
            assert decide(which, number) == expected, number
    assert decide(which, clone, 0x1200011) == 0  # fork
    assert decide(which, clone, 0x3D0F00) == 0  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(which, clone, flag | 17) == errno.EPERM
    assert decide(which, socketpair, 1, 1 | 0x80000) == 0
    assert (
        decide(which, socketpair, 1, 2)
        == decide(which, socketpair, 1, 5)
        == decide(which, socketpair, 2, 1)
        == errno.EPERM
    )
    fcntl = (72, 25)[which]
    assert [decide(which, fcntl, 3, command) for command in (0, 6, 1023, 1024, 1025, 1026, 1027, 1030)] == [
        0, 0, 0, errno.EPERM, 0, errno.EPERM, 0, 0,
    ]  # fmt: skip
    assert decide(which, 1, architecture=0x40000003) == "kill"  # 32 bits
    assert decide(which, 0x40000001) == "kill"  # x32


def package(site: Path, name: str, files: dict[str, str], requires: str = "") -> None:
    """Installs a made-up distribution in a folder of packages."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    needed = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needed}\nRequires-Dist: prose"
    )
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*files, f"{info.name}/METADATA"]))


def test_packages_that_require_a_grader_are_hidden_with_their_files(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3" / "site-packages"
    package(site, "plain", {"plain/__init__.py": ""}, "numpy")
    package(site, "grader", {"grader/__init__.py": "", "grader/gold.txt": ""}, "verifiers>=0.4")
    package(site, "bundle", {"bundle.py": "", "__pycache__/bundle.cpython-311.pyc": ""}, "Grader")
    package(site, "shared-name", {"group/one/__init__.py": "", "group/data.json": ""}, "rlm-train (>1)")
    package(site, "other-name", {"group/two/__init__.py": ""}, 'verifiers ; extra == "all"')
    for name, module in (("unrecorded", "unrecorded.py"), ("un-recorded", "un_recorded/__init__.py")):
        package(site, name, {module: ""}, "verifiers")
        (site / f"{name.replace('-', '_')}-1.0.dist-info" / "RECORD").unlink()
    package(
        site,
        "data",
        {"../../../share/gold.json": "", "../../../bin/data": ""},
        'verifiers; python_version > "3"',
    )
    assert {d.name for d in installed([str(site)])} == {
        "plain", "grader", "bundle", "shared-name", "other-name", "data", "unrecorded", "un-recorded",
    }  # fmt: skip
    found = [os.path.relpath(path, tmp_path) for path in hidden_paths([str(site)], ())]
    inside = "lib/python3/site-packages/"
    assert found == [
        inside + "bundle-1.0.dist-info",
        inside + "bundle.py",
        inside + "data-1.0.dist-info",
        inside + "grader",
        inside + "grader-1.0.dist-info",
        inside + "group/data.json",
        inside + "group/one",
        inside + "shared_name-1.0.dist-info",
        inside + "un_recorded",
        inside + "un_recorded-1.0.dist-info",
        inside + "unrecorded-1.0.dist-info",
        inside + "unrecorded.py",
        "share/gold.json",
    ]
    assert str(site / "plain") in hidden_paths([str(site)], ["plain"])
    with pytest.raises(ConfigError, match="no package 'plaim' is installed; did you mean 'plain'"):
        hidden_paths([str(site)], ["plaim"])


READ_ALL = """
import glob, os
found = []
for path in glob.glob(SITE + "/**", recursive=True):
    if os.path.isfile(path) and "gold" in open(path, "rb").read().decode("latin-1"):
        found.append(path)
print(found)
"""


async def test_compiled_code_of_hidden_modules_is_hidden(
    sandboxed: OpenREPL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is compiled after the sandbox was made, and if other packages have modules in the same folder."""
    site = tmp_path / "site-packages"
    secret = "answers = ['gold']\n"
    package(site, "grader", {"early.py": secret, "late.py": secret, "group/inner.py": secret}, "verifiers")
    package(site, "plain", {"plain.py": "fine = 1\n"})
    (site / "grader-1.0.dist-info" / "direct_url.json").write_text('{"url": "file:///gold"}')
    for name in ("early", "plain"):
        py_compile.compile(str(site / f"{name}.py"))
    monkeypatch.syspath_prepend(site)
    repl = await sandboxed(processes=96)
    for name in ("late", "group/inner"):
        py_compile.compile(str(site / f"{name}.py"))
    assert await printed(repl, f"SITE = {str(site)!r}\n{READ_ALL}") == "[]\n"
    assert (
        await printed(repl, "import plain, os; plain.fine, os.path.exists(plain.__cached__)") == "(1, True)\n"
    )
    for name in ("early", "late", "group.inner"):
        result = await repl.execute(f"import {name}")
        assert result.error == f"ModuleNotFoundError: {name} is hidden from the REPL by its sandbox"
    listing = "import importlib.metadata as m; sorted(d.name for d in m.distributions(path=[SITE]))"
    assert await printed(repl, listing) == "['hidden', 'plain']\n"
    fork_server(SandboxSettings(processes=96)).close()


def test_packages_of_the_base_python_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in a virtual environment cannot import them, but it could read their files."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    package(site, "grader", {"grader/__init__.py": ""}, "verifiers")
    package(site, "answers", {"answers/__init__.py": ""})
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    hidden = SandboxSettings.of([], ["answers"], 1 << 20, 8).plan()["hidden"]
    assert {str(site / "grader"), str(site / "answers")} <= set(hidden)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"readable": "/usr"}, "readable must be a list"),
        ({"readable": [3]}, "a path must be a str or a Path, not 3"),
        ({"readable": ["/nowhere"]}, "/nowhere does not exist"),
        ({"readable": ["/"]}, "would undo the sandbox"),
        ({"readable": ["/proc/1"]}, "would undo the sandbox"),
        ({"readable": ["/tmp"]}, "name a directory below it"),
        ({"readable": ["/proc/self/root/tmp"]}, "name a directory below it"),
        ({"hidden": "numpy"}, "hidden must be a list"),
        ({"hidden": ["nunpy"]}, "no package 'nunpy' is installed; did you mean 'numpy'"),
        ({"scratch_bytes": 10}, "scratch_bytes must be a whole number, 1,048,576 or more"),
        ({"scratch_bytes": 2.5e9}, "scratch_bytes must be a whole number"),
        ({"processes": 1}, "processes must be a whole number, 8 or more"),
        ({"processes": True}, "processes must be"),
        ({"isolation": "process", "processes": 100}, "settings of a sandbox"),
        ({"isolation": "process", "readable": ["/usr"]}, "settings of a sandbox"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment("local", **settings)


def test_ld_library_path_shows_only_folders_of_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, links = tmp_path / "homes" / "me", tmp_path / "links"
    for folder in (home / "lib", links):
        folder.mkdir(parents=True)
    (links / "scratch").symlink_to("/tmp")
    (links / "root").symlink_to("/")
    monkeypatch.setenv("HOME", str(home))
    kept = [str(home / "lib"), str(links)]
    bad = ["/", "//", "/tmp", "/tmp/.", "/var/tmp", "/proc/1/root", "/dev/shm", "", "lib", "."]
    bad += map(str, [home, home.parent, home / "lib" / "..", links / "scratch", links / "root"])
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    without = SandboxSettings().plan()["visible"]
    monkeypatch.setenv("LD_LIBRARY_PATH", ":".join([kept[0], *bad, kept[1]]))
    assert SandboxSettings().plan()["visible"] == [*without, *kept]


def test_a_python_that_was_started_by_a_relative_path_has_a_sandbox(tmp_path: Path) -> None:
    code = "import sys; from rlm.environments.isolation import probe; print('..' in sys.executable, probe().reason)"
    started = [os.path.relpath(sys.executable, tmp_path), "-c", code]
    done = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "True None\n", done.stderr


async def test_repls_with_equal_settings_share_a_fork_server(sandboxed: OpenREPL) -> None:
    first, second = await sandboxed(processes=99), await sandboxed(processes=99, hidden=[])
    parents = [(await find(repl, "os.getpid()"))[0].ppid() for repl in (first, second)]
    assert parents[0] == parents[1]
    third = await sandboxed(processes=98)
    assert (await find(third, "os.getpid()"))[0].ppid() != parents[0]
    for number in (98, 99):
        fork_server(SandboxSettings(processes=number)).close()


async def test_threads_count_as_processes(sandboxed: OpenREPL) -> None:
    repl = await sandboxed(processes=16)
    code = """
import threading
stop, started = threading.Event(), []
try:
    for _ in range(400):
        thread = threading.Thread(target=stop.wait)
        thread.start()
        started.append(thread)
except RuntimeError as error:
    print(error, len(started) < 330)
stop.set()
for thread in started: thread.join()
"""
    assert await printed(repl, code) == "can't start new thread True\n"
    assert await printed(repl, "context") == "'the context'\n"
    later = "import subprocess\nfor _ in range(400): subprocess.run(['true'])\nprint('done')"
    assert await printed(repl, later) == "done\n"


async def test_processes_are_counted_where_the_kernel_has_no_limit(
    sandboxed: OpenREPL, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SandboxSettings.plan
    monkeypatch.setattr(SandboxSettings, "plan", lambda self: {**plan(self), "count": True})
    repl, other = await sandboxed(processes=33), await sandboxed(processes=33)
    await other.execute("import subprocess; kept = [subprocess.Popen(['sleep', '1000']) for _ in range(20)]")
    bomb = "import os, time\nfor _ in range(2000):\n    if os.fork() == 0: time.sleep(1000)\ntime.sleep(1000)"
    for code in (
        bomb,
        # The threads may exceed the limit on memory before they are counted.
        (
            "import threading\ntry:\n    for _ in range(2000): threading.Thread(target=time.sleep, args=[1000]).start()\n"
            "finally: time.sleep(1000)"
        ),
    ):
        result = await repl.execute("import time\n" + code)
        assert result.status == "died", result
        assert "more processes than it may have" in str(result.error)
        assert await printed(repl, "context") == "'the context'\n"
    assert await printed(other, "print({child.poll() for child in kept})") == "{None}\n"
    fork_server(SandboxSettings(processes=33)).close()


NO_SANDBOX = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.getuid(), os.getgid()
assert libc.unshare(0x10000000) == 0
open("/proc/self/setgroups", "w").write("deny")
open("/proc/self/uid_map", "w").write(f"{uid} {uid} 1")
open("/proc/self/gid_map", "w").write(f"{gid} {gid} 1")
open("/proc/sys/user/max_user_namespaces", "w").write("0")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

FALLS_BACK = """
import asyncio, warnings
from rlm import RLM
from rlm.environments import SessionSpec, make_environment
from rlm.environments.isolation import IsolationWarning, probe
from rlm.errors import ConfigError, REPLError

async def main():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            environment = make_environment("local")
            repl = await environment.open(SessionSpec(), None)
            print((await repl.execute("6 * 7")).stdout, end="")
            await repl.close()
            print(environment.isolation)
    for warning in caught:
        print(warning.category.__name__, warning.message)
    print(probe().level, probe().reason, probe().features["user namespaces"])
    try:
        make_environment("local", isolation="sandbox!")
    except ConfigError as error:
        print("refused:", error)

asyncio.run(main())
"""


def test_a_kernel_that_refuses_a_sandbox_gives_a_warning_and_the_level_process() -> None:
    """The test runs in a user namespace that may have none below it."""
    done = subprocess.run(
        [sys.executable, "-c", NO_SANDBOX, "-c", FALLS_BACK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reason = "a user namespace: No space left on device"
    first, second, third, fourth, warning, probed, refused = done.stdout.splitlines()
    assert [first, second, third, fourth] == ["42", "process"] * 2
    assert warning.startswith(f"IsolationWarning there is no sandbox for the code of models: {reason}. ")
    assert probed == f"process {reason} False"
    assert (
        refused == f'refused: this machine allows no sandbox: {reason}. isolation="process" runs without one'
    )


MASKS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, ctypes.c_ulong(0x44000), None) == 0
assert libc.mount(b"tmpfs", b"/proc/sys", b"tmpfs", ctypes.c_ulong(0), None) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

WITHOUT_PROC = """
import asyncio
from rlm.environments import SessionSpec, make_environment
from rlm.environments.isolation import probe

async def main():
    repl = await make_environment("local", isolation="sandbox!").open(SessionSpec(), None)
    print((await repl.execute("import os, multiprocessing as m; os.listdir('/proc')")).stdout, end="")
    print((await repl.execute("with m.get_context('fork').Pool(2) as p: print(p.map(abs, [-1]))")).stdout, end="")
    print((await repl.execute("import time; time.sleep(1000)", timeout=0.1)).status)
    await repl.close()
    print(probe().level, probe().features["own /proc"], probe().features["process limit"])

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mask parts of /proc")
def test_a_sandbox_works_in_a_container_that_masks_parts_of_proc() -> None:
    command = [sys.executable, "-c", MASKS, "-W", "error", "-c", WITHOUT_PROC]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "[1]", "interrupted", "sandbox False none"], done.stderr


@pytest.mark.parametrize("broken", [{"visible": None}, {"scratch_bytes": -1}])
async def test_a_sandbox_that_cannot_be_made_is_an_error(
    monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any]
) -> None:
    """Code runs in a sandbox, or not at all."""
    plan = {**SandboxSettings().plan(), **broken}
    strict = LocalEnvironment(isolation="sandbox!", processes=97)
    monkeypatch.setattr(SandboxSettings, "plan", lambda self: plan)
    with pytest.raises(REPLError, match="the sandbox could not be made: "):
        await strict.open(SessionSpec(), answer)
    assert strict.isolation == "sandbox!"


@pytest.mark.timeout(240)
@pytest.mark.skipif(os.geteuid() != 0, reason="all tests run as an ordinary user already")
def test_the_sandbox_holds_for_an_ordinary_user(tmp_path: Path) -> None:
    """Runs the attacks on a sandbox, and the tests of this module, as a user without privileges."""
    here = Path(__file__).parent
    tests = [str(here / name) for name in ("test_isolation.py", "test_sandbox.py")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-k",
        "sandbox",
        *tests,
    ]
    roots = {sys.prefix, sys.base_prefix, str(here.parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *sorted(roots), "--", *command],
        capture_output=True, text=True, check=False, cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


AS_NOBODY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())
split = sys.argv.index("--")
roots, command = sys.argv[1:split], sys.argv[split + 1:]
check(libc.unshare(0x20000))
check(libc.mount(None, b"/", None, 0x4000 | 0x40000, None))
# A folder above them may be closed to other users, as a home is. An empty folder takes its place, with them mounted in it.
held = {root: os.open(root, os.O_PATH) for root in roots}
for root in roots:
    parts = root.split("/")
    for end in range(2, len(parts) + 1):
        folder = "/".join(parts[:end])
        if not os.stat(folder).st_mode & 0o001:
            check(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"mode=755"))
            for other, fd in held.items():
                if (other + "/").startswith(folder + "/"):
                    os.makedirs(other, exist_ok=True)
                    check(libc.mount(f"/proc/self/fd/{fd}".encode(), other.encode(), None, 0x1000 | 0x4000, None))
            break
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.chdir(roots[0])
os.execv(command[0], command)
"""
