"""`rlm run`: inputs, options, output and exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlm.cli import main
from rlm.testing import ChatRequest, Fault, ModelServer, Script, finish, repl_block, serve

from .conftest import PROGRAM, Run, environment

READY = finish("'42'")


def sampling_of(server: ModelServer) -> list[dict[str, Any]]:
    return [request.sampling for request in server.requests]


# --- inputs ---


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["Which?", "--context", "a.txt"], "'one\\r\\n' | Which?"),
        (["--context", "a.txt", "Which?"], "'one\\r\\n' | Which?"),
        (["-c", "a.txt"], "'one\\r\\n' | no question"),
        (["-c", "raw.bin", "Which?"], "b'\\xff\\x00' | Which?"),
        (["-c", "deep/latin.txt", "--encoding", "latin-1", "Which?"], "'é' | Which?"),
        (
            ["--context", "a.txt", "b.txt", "Which?"],
            "[{'path': 'a.txt', 'text': 'one\\r\\n'}, {'path': 'b.txt', 'text': 'two'}] | Which?",
        ),
        (
            ["-c", "b.txt", "-c", "raw.bin", "Which?"],
            "[{'path': 'b.txt', 'text': 'two'}, {'path': 'raw.bin', 'data': b'\\xff\\x00'}] | Which?",
        ),
        (
            ["-c", "deep/**/*.txt", "deep/latin.txt", "Which?"],
            "[{'path': 'deep/c [1].txt', 'text': 'three'}, {'path': 'deep/latin.txt', 'data': b'\\xe9'}] | Which?",
        ),
        (["-c", "deep/c [1].txt", "Which?"], "'three' | Which?"),
        (["Which?"], "'Which?' | no question"),
    ],
)
def test_files_become_the_context(
    words: list[str],
    seen: str,
    server: ModelServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name, data in {
        "a.txt": b"one\r\n",
        "b.txt": b"two",
        "deep/c [1].txt": b"three",
        "deep/latin.txt": "é".encode("latin-1"),
        "raw.bin": b"\xff\x00",
    }.items():
        (tmp_path / name).write_bytes(data)
    assert main(["run", "--base-url", server.base_url, *words]) == 0
    assert capsys.readouterr() == (f"{seen}\n", "")


@pytest.mark.parametrize(
    ("words", "piped", "seen"),
    [
        (["Which?"], b"from a pipe", "'from a pipe' | Which?"),
        (["Which?", "-c", "-"], b"from a pipe", "'from a pipe' | Which?"),
        (["-c", "-", "Which?"], b"", "'' | Which?"),
        (["Which?"], b"", "'Which?' | no question"),
        ([], b"Sum?", "'Sum?' | no question"),
        (
            ["-c", "-", "a.txt", "Which?"],
            b"\xff",
            "[{'path': '-', 'data': b'\\xff'}, {'path': 'a.txt', 'text': 'one'}] | Which?",
        ),
    ],
)
def test_stdin_becomes_the_context(
    words: list[str], piped: bytes, seen: str, rlm: Run, server: ModelServer, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one")
    done = rlm("run", "--base-url", server.base_url, *words, stdin=piped)
    assert (done.code, done.out, done.err) == (0, f"{seen}\n", "")


def test_a_named_pipe_is_read_like_a_file(rlm: Run, server: ModelServer, tmp_path: Path) -> None:
    """Shells make one for `--context <(command)`."""
    os.mkfifo(tmp_path / "pipe")
    command = [*PROGRAM, "run", "--base-url", server.base_url, "-c", "pipe", "Which?"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        (tmp_path / "pipe").write_text("through")
        out, _ = process.communicate(timeout=50)
    assert (process.returncode, out) == (0, "'through' | Which?\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-c", "gone.txt", "Which?"], "there is no file 'gone.txt'"),
        (["-c", "a.txt", "gone.txt"], "there is no file 'gone.txt'; if it is the question"),
        (["-c", "*.csv", "Which?"], "no file matches '*.csv'"),
        (["-c", ".", "Which?"], "'.' is a folder; name its files: './**/*'"),
        (
            ["-c", "raw.bin", "--encoding", "utf-8", "Which?"],
            "'raw.bin' is not utf-8: invalid start byte at byte 0",
        ),
        (["-c", "a.txt", "--encoding", "utf-9", "Which?"], "there is no encoding 'utf-9'"),
        (["-c", "", "Which?"], "--context has an empty word"),
        ([""], "the question is empty"),
        (["-c", "a.txt", " "], "the question is empty"),
        (["one", "two"], "there is more than one question: 'two'"),
        ([], "there is nothing to ask"),
        (["Which?", "--modle", "x"], "there is no option --modle; did you mean --model?"),
        (["Which?", "--max-depth", "-1"], "max_depth must be an integer of at least 0"),
        (["Which?", "--max-depth", "deep"], "invalid int value: 'deep'"),
        (["Which?", "--set", "temperature"], "--set takes NAME=VALUE, not 'temperature'"),
        (["Which?", "--set", "n=1", "--set", "n=2"], "--set was given 'n' twice"),
        (
            ["Which?", "--price", "scripted=1"],
            "--price takes MODEL=IN,OUT in USD per million tokens, not 'scripted=1'",
        ),
        (["Which?", "--max-budget", "1"], "max_budget needs to know what 'scripted' costs"),
        (["Which?", "--backend-option", "api_key=k"], "name a variable with --api-key-env"),
        (["Which?", "--backend-option", "timeuot=3"], "did you mean 'timeout'?"),
        (
            ["Which?", "--api-key-env", "NOT_SET"],
            "the environment variable NOT_SET, which should hold the key, is not set",
        ),
        (["Which?", "--environment-option", "cell_timeuot=3"], "did you mean 'cell_timeout'?"),
        (["Which?", "--isolation", "sandbxo"], "there is no isolation 'sandbxo'"),
        (["Which?", "--response-schema", "a.txt"], "'a.txt' is not JSON"),
        (
            ["Which?", "--response-schema", "null.json"],
            "'null.json' must hold a JSON schema, which is an object",
        ),
        (["Which?", "--response-schema", "loop.json"], "refers to itself without end"),
        (["Which?", "--system-prompt", "gone.txt"], "'gone.txt' cannot be read: No such file or directory"),
        (["Which?", "--log-dir", "a.txt"], "--log-dir 'a.txt' cannot be used: File exists"),
    ],
)
def test_a_wrong_argument_is_refused_before_a_model_is_called(
    words: list[str],
    said: str,
    server: ModelServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "raw.bin").write_bytes(b"\xff")
    (tmp_path / "null.json").write_text("null")
    (tmp_path / "loop.json").write_text('{"$ref": "#"}')
    code = main(["run", "--base-url", server.base_url, *words])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err
    assert server.requests == []


# --- models ---


def test_a_server_and_its_key_come_from_the_environment(rlm: Run) -> None:
    with serve(Script([READY]), models=["one", "two"], api_key="the-key-itself") as server:
        named = {"RLM_BASE_URL": server.base_url, "RLM_MODEL": "two", "RLM_API_KEY": "the-key-itself"}
        done = rlm("run", "Which?", **named)
        assert (done.code, done.out) == (0, "42\n"), done.err
        # RLM_MODEL and RLM_API_KEY do not apply to a server of the command line.
        done = rlm("run", "Which?", "--base-url", server.base_url, **named)
        assert (done.code, "wants a key" in done.err) == (3, True)
        keyed = ["--base-url", server.base_url, "--api-key-env", "RLM_API_KEY"]
        done = rlm("run", "Which?", *keyed, **named)
        assert done.code == 2
        assert f"no model was named: give its name with --model. {server.base_url} has one, two" in done.err
        done = rlm("run", "Which?", *keyed, "--model", "one", **named)
        assert (done.code, done.out) == (0, "42\n"), done.err
        assert "the-key-itself" not in done.err
    assert [request.model for request in server.requests] == ["two", "one"]


def test_without_a_server_the_backend_is_openai(rlm: Run) -> None:
    done = rlm("run", "Which?", "--model", "gpt-5")
    assert done.code == 2
    assert "OPENAI_API_KEY" in done.err
    done = rlm("run", "Which?")
    assert (done.code, done.err) == (2, "rlm: no model was named: give its name with --model\n")


def test_arguments_reach_the_models(rlm: Run, tmp_path: Path) -> None:
    asks = finish("llm_query('sub')")
    (tmp_path / "system.txt").write_text("Be brief, {you}.")

    def policy(request: ChatRequest) -> str:
        return f"from {request.model}" if request.is_subcall else asks

    options = ["--temperature", "0.5", "--set", "seed=7", "--set", 'stop=["x"]', "--sub-set", "temperature=0"]
    with serve(policy, models=["root", "sub"]) as server, serve(policy, models=["other"]) as other:
        where = ["--base-url", server.base_url, "--model", "root", "--system-prompt", "system.txt"]
        done = rlm("run", "Which?", *where, *options, "--sub-model", "sub")
        assert (done.code, done.out) == (0, "from sub\n"), done.err
        done = rlm("run", "Which?", *where, *options, "--sub-base-url", other.base_url)
        assert (done.code, done.out) == (0, "from other\n"), done.err
    root, sub = server.requests[0], server.requests[1]
    assert root.messages[0]["content"] == "Be brief, {you}."
    assert (root.model, root.sampling["temperature"], root.sampling["seed"], root.sampling["stop"]) == (
        "root",
        0.5,
        7,
        ["x"],
    )
    assert (sub.model, sub.sampling["temperature"], sub.sampling["seed"]) == ("sub", 0, 7)


# --- output and exit codes ---


def test_json_output_has_answer_usage_and_reason_of_the_end(
    rlm: Run, server: ModelServer, tmp_path: Path
) -> None:
    done = rlm(
        "run",
        "Which?",
        "--base-url",
        server.base_url,
        "--json",
        "--log-dir",
        "logs",
        "--verbose",
        stdin=b"in",
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["response"] == "'in' | Which?"
    assert (report["exit_code"], report["error"], report["error_type"], report["stop"]) == (
        0,
        None,
        None,
        "answered",
    )
    assert report["prompt"] == {"kind": "str", "size": 2, "sha256": report["prompt"]["sha256"]}
    assert report["usage"]["calls"] == 1
    assert (
        report["usage"]["input_tokens"]
        == report["usage_summary"]["model_usage_summaries"]["scripted"]["total_input_tokens"]
    )
    assert [message["role"] for message in report["messages"]] == ["system", "user", "assistant"]
    [log] = (tmp_path / "logs").iterdir()
    assert Path(report["metadata"]["run_metadata"]["log_file"]).name == log.name
    assert "'in' | Which?" in done.err


def test_a_response_schema_shapes_the_answer(rlm: Run, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    wrong = finish('\'{"n": "many"}\'')
    right = finish("'{\"n\": 3}'")
    with serve(Script([wrong, right])) as server:
        where = ["--base-url", server.base_url, "--response-schema", "schema.json"]
        done = rlm("run", "How many?", *where)
        assert (done.code, json.loads(done.out)) == (0, {"n": 3}), done.err
        done = rlm("run", "How many?", *where, "--json")
        assert json.loads(done.out)["parsed"] == {"n": 3}
    with serve(Script([wrong] * 6)) as server:
        done = rlm(
            "run",
            "How many?",
            "--base-url",
            server.base_url,
            "--response-schema",
            "schema.json",
            "--max-iterations",
            "2",
        )
    assert done.code == 1
    assert "what is printed is the best answer so far" in done.err


def test_turns_that_run_out_end_in_an_answer_with_a_note(rlm: Run) -> None:
    with serve(Script([repl_block("x = 1"), "I guess 7."])) as server:
        done = rlm("run", "Which?", "--base-url", server.base_url, "--max-iterations", "1")
    assert (done.code, done.out) == (0, "I guess 7.\n")
    assert "the turns ran out" in done.err


def test_a_limit_without_an_answer_has_an_exit_code_of_its_own(rlm: Run) -> None:
    begun = repl_block("answer['content'] = 'about 40'\nraise ValueError")
    with serve(Script([begun, begun])) as server:
        words = ["run", "Which?", "--base-url", server.base_url, "--max-errors", "1"]
        done = rlm(*words)
        assert (done.code, done.out) == (1, "about 40\n")
        assert done.err.startswith("rlm: 1 cells failed in a row (max_errors is 1)")
        assert "what is printed is the best answer so far" in done.err
        report = json.loads(rlm(*words, "--json").out)
        assert (report["exit_code"], report["error_type"], report["response"]) == (
            1,
            "ErrorThresholdExceededError",
            "about 40",
        )
        done = rlm(*words, "--debug")
        assert (done.code, "ErrorThresholdExceededError" in done.err, "Traceback" in done.err) == (
            1,
            True,
            True,
        )
    with serve(Script([repl_block("while True: pass")])) as server:
        done = rlm("run", "Which?", "--base-url", server.base_url, "--max-timeout", "0.2")
    assert (done.code, done.out) == (1, "")
    assert "max_timeout is 0.2 s; there is no answer" in done.err


def test_a_budget_needs_a_price(rlm: Run, server: ModelServer) -> None:
    words = ["run", "Which?", "--base-url", server.base_url, "--max-budget", "0.01", "--price"]
    done = rlm(*words, "scripted=1,2", "--json")
    report = json.loads(done.out)
    tokens = report["usage"]["input_tokens"] + 2 * report["usage"]["output_tokens"]
    assert (done.code, report["usage"]["cost"]) == (0, pytest.approx(tokens / 1e6))
    done = rlm(*words, "scripted=1000,2000")
    assert (done.code, done.out) == (1, ""), done.err
    assert "max_budget is 0.0100 USD" in done.err


def test_a_model_that_fails_has_an_exit_code_of_its_own(rlm: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # no server listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        for named in ([], ["--model", "m", "--backend-option", "max_retries=0"]):
            done = rlm("run", "Which?", "--base-url", url, *named)
            assert (done.code, done.out) == (3, "")
            assert url in done.err
            assert "Traceback" not in done.err
    with serve(Script([Fault(400, "no such thing")])) as server:
        done = rlm("run", "Which?", "--base-url", server.base_url, "--json")
    assert done.code == 3
    report = json.loads(done.out)
    assert (report["exit_code"], report["response"]) == (3, "")
    assert "no such thing" in report["error"]


def test_a_repl_that_cannot_start_has_an_exit_code_of_its_own(server: ModelServer, tmp_path: Path) -> None:
    """The Python that starts the REPL has been removed."""
    program = (
        f"import sys; sys.executable = {str(tmp_path / 'gone')!r}; from rlm.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "run",
            "Which?",
            "--base-url",
            server.base_url,
            "--isolation",
            "process",
        ],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_output_is_printed_for_every_failure(rlm: Run, server: ModelServer) -> None:
    done = rlm("run", "Which?", "--base-url", server.base_url, "-c", "gone.txt", "--json")
    report = json.loads(done.out)
    assert (done.code, report["exit_code"], report["error_type"]) == (2, 2, "ConfigError")


def test_json_output_is_printed_for_a_bug(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("lost")

    monkeypatch.setattr("rlm.RLM", broken)
    assert main(["run", "Which?", "--base-url", server.base_url, "--json"]) == 70
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["exit_code"], report["error_type"], report["error"]) == (70, "LookupError", "lost")
    assert "This is a bug in rlm" in err


def test_json_output_has_no_nan_or_infinity(rlm: Run, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "number"}')
    turns = [finish(f"'{number}'") for number in ("NaN", "-Infinity", "3.5")]
    with serve(Script(turns)) as server:
        words = ["--base-url", server.base_url, "--response-schema", "schema.json", "--json"]
        done = rlm("run", "How many?", *words)
    assert json.loads(done.out, parse_constant=pytest.fail)["parsed"] == 3.5
    assert len(server.requests) == 3


def test_closed_streams_do_not_crash_the_command(server: ModelServer, tmp_path: Path) -> None:
    def run(closing: str, *words: str) -> tuple[int, str, str]:
        command = ["sh", "-c", f'exec "$0" "$@" {closing}', *PROGRAM, "run", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), input="in", capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    words = ["Which?", "--base-url", server.base_url]
    assert run(">&-", *words) == (74, "", "rlm: stdout could not be written: it is closed\n")
    assert run(">&-", *words, "--json")[0] == 74
    assert server.requests == []
    assert run("2>&-", *words) == (0, "'in' | Which?\n", "")
    assert run("2>&-", "Which?", "-c", "gone.txt", "--base-url", server.base_url) == (2, "", "")


def test_a_closed_pipe_ends_the_command_quietly(server: ModelServer, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            [*PROGRAM, "run", "Which?", "--base-url", server.base_url],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_has_an_exit_code_of_its_own(server: ModelServer, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, "run", "Which?", "--base-url", server.base_url],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        74,
        "rlm: stdout could not be written: No space left on device\n",
    )


def test_characters_that_stdout_cannot_encode_are_escaped(rlm: Run) -> None:
    with serve(Script([finish("'\\u20ac \\ud800'")])) as server:
        done = rlm("run", "Which?", "--base-url", server.base_url, PYTHONIOENCODING="ascii")
    assert (done.code, done.out) == (0, "\\u20ac \\ud800\n"), done.err


# --- signals ---


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_the_run_with_the_best_answer(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    cells = [repl_block("answer['content'] = 'so far'"), repl_block("llm_query('now')\nwhile True: pass")]
    runs = threading.Event()

    def policy(request: ChatRequest) -> str:
        if request.is_subcall:
            runs.set()
            return "go on"
        return cells[request.turn]

    with serve(policy) as server:
        command = [*PROGRAM, "run", "Which?", "--base-url", server.base_url]
        with subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert runs.wait(30)
                children = psutil.Process(process.pid).children(recursive=True)
                assert children
            finally:
                process.send_signal(number)
                out, err = process.communicate(timeout=50)
    assert (process.returncode, out) == (code, "so far\n")
    assert err == "rlm: interrupted; what is printed is the best answer so far\n"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
