"""What cells, their children and C code print is captured and bounded, and cannot disturb the protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import psutil

from rlm.environments import REPL
from rlm.repl.worker.protocol.frames import pack
from rlm.repl.worker.protocol.kinds import FromSupervisor

OpenREPL = Callable[..., Awaitable[REPL]]


async def test_output_of_children_and_of_c_code_is_captured(repl: REPL) -> None:
    result = await repl.execute(
        "import os, sys, ctypes\nprint('python')\nos.system('echo shell; echo wrong >&2')\n"
        "ctypes.CDLL(None).puts(b'from C')\nos.write(1, b'raw\\n')\nprint('error', file=sys.stderr)"
    )
    assert result.status == "ok", result.stderr
    assert sorted(result.stdout.splitlines()) == ["from C", "python", "raw", "shell"]
    assert sorted(result.stderr.splitlines()) == ["error", "wrong"]


async def test_head_and_tail_are_kept_and_the_error_is_visible(repl: REPL) -> None:
    result = await repl.execute(
        "import sys\nfor i in range(100_000): print(i); print(i, file=sys.stderr)\n1 / 0"
    )
    for text in (result.stdout, result.stderr):
        assert len(text) < 20_100
        assert text.startswith("0\n1\n2\n")
        assert "characters left out" in text
    assert result.stdout.endswith("99998\n99999\n")
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    left_out = int(result.stdout.split("... [")[1].split(" ")[0].replace(",", ""))
    printed = sum(len(f"{i}\n") for i in range(100_000))
    assert left_out == printed - 20_000


async def test_the_limit_is_a_setting_and_counts_characters(open_repl: OpenREPL) -> None:
    repl = await open_repl(max_output_chars=100)
    assert (await repl.execute("print('中' * 99)")).stdout == "中" * 99 + "\n"
    cut = (await repl.execute("print('中' * 150)")).stdout
    assert cut == "中" * 50 + "\n... [51 characters left out] ...\n" + "中" * 49 + "\n"


async def test_a_gigabyte_of_output_takes_little_memory(repl: REPL) -> None:
    result = await repl.execute(
        "import os\nline = b'x' * 999_999 + b'\\n'\nfor _ in range(1000): os.write(1, line)\nprint('end')"
    )
    assert result.stdout.startswith("xxx")
    assert result.stdout.endswith("xxx\nend\n")
    assert len(result.stdout) < 20_100
    assert all(process.memory_info().rss < 100e6 for process in psutil.Process().children(recursive=True))


async def test_omitted_output_is_counted_in_characters(repl: REPL) -> None:
    """However the output is cut into pieces."""
    result = await repl.execute(
        "import os\ndata = ('中é' * 1_000_000).encode()\n"
        "for start in range(0, len(data), 10_007): os.write(1, data[start : start + 10_007])\nNone"
    )
    half = "中é" * 5_000
    assert result.stdout == f"{half}\n... [1,980,000 characters left out] ...\n{half}"
    result = await repl.execute("os.write(1, b'\\x80' * 3_000_000); os.write(1, b'end'); None")
    assert result.stdout.startswith("\\x80\\x80")
    assert result.stdout.endswith("\\x80end")
    assert len(result.stdout) < 20_100


async def test_non_blocking_pipes_are_blocking_again_in_the_next_cell(repl: REPL) -> None:
    await repl.execute("import os\nfor fd in (1, 2): os.set_blocking(fd, False)")
    result = await repl.execute("os.write(1, b'a' * 3_000_000); print('b' * 3_000_000)")
    assert (result.status, result.error) == ("ok", None)


async def test_bytes_that_are_no_utf8_become_escapes(repl: REPL) -> None:
    result = await repl.execute("import os\nos.write(1, b'\\xff\\xfe ok \\xe4\\xb8')\nNone")
    assert result.stdout == "\\xff\\xfe ok \\xe4\\xb8"


async def test_a_cell_does_not_wait_for_a_daemon_that_holds_its_pipe(repl: REPL) -> None:
    result = await repl.execute(
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000']); print('started')"
    )
    assert (result.status, result.stdout) == ("ok", "started\n")
    endless = await repl.execute("noise = subprocess.Popen(['yes']); print('on')")
    assert endless.status == "ok"
    assert (await repl.execute("noise.kill(); child.poll() is None")).status == "ok"


async def test_output_before_a_death_or_a_kill_is_kept(repl: REPL) -> None:
    died = await repl.execute("import os\nprint('last words')\nos._exit(9)")
    assert (died.status, died.stdout) == ("died", "last words\n")
    killed = await repl.execute("print('more words')\nsum(range(10**12))", timeout=0.1)
    assert (killed.status, killed.stdout) == ("killed", "more words\n")


async def test_prints_do_not_reach_the_protocol(repl: REPL) -> None:
    frame = pack(FromSupervisor.ENDED, b"{}")
    await repl.execute(
        f"import os\nfor fd in (0, 1, 2):\n    try: os.write(fd, {frame!r} * 1000)\n    except OSError: pass"
    )
    assert (await repl.execute("1")).stdout.endswith("1\n")


async def test_writes_to_every_descriptor_can_only_end_the_worker(repl: REPL) -> None:
    code = (
        "import os\nfor fd in map(int, os.listdir('/proc/self/fd')):\n"
        "    try: os.write(fd, b'X' * 5000)\n    except OSError: pass"
    )
    result = await repl.execute(code)
    assert result.status in ("ok", "died")
    assert (await repl.execute("context")).stdout.endswith("'the context'\n")


async def test_a_thread_of_an_earlier_cell_may_print(repl: REPL) -> None:
    await repl.execute(
        "import threading\ngo = threading.Event()\n"
        "def late():\n    go.wait(); print('late', flush=True); done.set()\n"
        "done = threading.Event()\nthread = threading.Thread(target=late, daemon=True); thread.start()"
    )
    result = await repl.execute("go.set(); done.wait(); print('cell')")
    assert sorted(result.stdout.splitlines()) == ["cell", "late"]


async def test_prints_and_programs_keep_their_order(repl: REPL) -> None:
    result = await repl.execute(
        "import os, subprocess, sys\nprint('a'); os.system('echo b'); print('c')\n"
        "subprocess.run(['echo', 'd']); sys.stdout.write('e\\n'); sys.stdout.buffer.write(bytearray(b'f\\n'))\n"
        "child = os.posix_spawn('/bin/echo', ['echo', 'g'], os.environ); os.waitpid(child, 0); print('h'); 'i'"
    )
    assert result.stdout == "a\nb\nc\nd\ne\nf\ng\nh\n'i'\n"


async def test_output_larger_than_the_shared_memory_arrives_whole(open_repl: OpenREPL) -> None:
    repl = await open_repl(max_output_chars=10_000_000)
    result = await repl.execute(
        "for i in range(30_000): print(i, 'é')\nprint('x' * 200_000)\nfor i in range(5): print(i)"
    )
    lines = [f"{i} é\n" for i in range(30_000)]
    assert result.stdout == "".join(lines) + "x" * 200_000 + "\n0\n1\n2\n3\n4\n"
    assert (await repl.execute("print('next')")).stdout == "next\n"


async def test_lines_of_forked_children_are_whole(repl: REPL) -> None:
    result = await repl.execute(
        "import os\nprint('parent')\nfor child in range(4):\n    if os.fork() == 0:\n"
        "        for i in range(200): print('child', child, i)\n        os._exit(0)\n"
        "while True:\n    try: os.wait()\n    except ChildProcessError: break\nprint('end')"
    )
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("parent", "end")
    assert sorted(lines[1:-1]) == sorted(f"child {child} {i}" for child in range(4) for i in range(200))


async def test_output_follows_a_redirected_descriptor(repl: REPL) -> None:
    result = await repl.execute(
        "import os, sys\nprint('before'); sys.stdout.flush()\nkept = os.dup(1)\n"
        "file = open('log', 'w'); os.dup2(file.fileno(), 1)\nprint('inside'); sys.stdout.flush()\n"
        "os.dup2(kept, 1); os.close(kept); file.close()\nprint('after')\nopen('log').read()"
    )
    assert result.status == "ok", result.stderr
    assert result.stdout == "before\nafter\n'inside\\n'\n"
    left = await repl.execute("file = open('log', 'w'); os.dup2(file.fileno(), 1); print('there')")
    assert left.stdout == ""
    assert (await repl.execute("print('here'); open('log').read()")).stdout == "here\n'there\\n'\n"


async def test_output_in_memory_and_in_the_pipe_keeps_its_order_when_the_worker_dies(repl: REPL) -> None:
    died = await repl.execute(
        "import os, sys\nprint('one'); os.system('echo two'); print('three'); print('four', file=sys.stderr)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert (died.status, died.stdout) == ("died", "one\ntwo\nthree\n")
    assert died.stderr.startswith("four\n")


async def test_output_of_a_program_that_an_earlier_cell_started_is_captured(repl: REPL) -> None:
    await repl.execute(
        "import subprocess\nchild = subprocess.Popen('read line; echo $line', shell=True, stdin=subprocess.PIPE)"
    )
    first = await repl.execute("child.stdin.write(b'late\\n'); child.stdin.close(); print(child.wait())")
    assert sorted(first.stdout.splitlines()) == ["0", "late"]
    assert (await repl.execute("print('quiet')")).stdout == "quiet\n"


async def test_a_closed_stream_raises_and_the_next_cell_has_a_new_one(repl: REPL) -> None:
    closed = await repl.execute("import sys\nprint('kept')\nsys.stdout.close()\nprint('lost')")
    assert closed.stdout == "kept\n"
    assert closed.error == "ValueError: I/O operation on closed file."
    result = await repl.execute("sys.stdout.write(5)")
    assert str(result.error).startswith("TypeError")
    names = await repl.execute(
        "print(sys.stdout.name, sys.stdout.fileno(), sys.stdout.isatty(), sys.stdout.encoding)"
    )
    assert names.stdout == "<stdout> 1 False utf-8\n"


async def test_the_shared_memory_cannot_be_taken_from_the_supervisor(open_repl: OpenREPL) -> None:
    """Code that finds the file again, as root may, cannot shorten it. To read behind its end would kill the supervisor."""
    repl, other = await open_repl(), await open_repl("other")
    await other.execute("kept = 1")
    code = (
        "import os, re\n"
        "for line in open('/proc/self/maps'):\n"
        "    if 'memfd:rlm' in line:\n"
        "        try: os.truncate('/proc/self/map_files/' + line.split()[0], 0)\n"
        "        except OSError as error: print(type(error).__name__)\n"
        "os.system('echo shell'); os.kill(os.getpid(), 9)"
    )
    result = await repl.execute(code)
    assert result.status == "died"
    assert "SIGKILL" in str(result.error)
    assert result.stdout.splitlines()[-1] == "shell"
    assert (await other.execute("kept")).stdout == "1\n"
