"""The launch files in prime-rl itself: its classes, its dry run, and an evaluation on two env servers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oolong.policies.reference import ReferencePolicy
from oolong.sources.fetched import FETCHED_SHA256, data_folder
from rlm import RLM
from rlm.testing import Script, ScriptedClient, finish, repl_block, serve
from rlm_train.testing import build_tokenizer

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
FILES = {
    **dict.fromkeys(sorted((CONFIGS / "rl").glob("*.toml")), "rl"),
    **dict.fromkeys(sorted((CONFIGS / "sft").glob("*.toml")), "sft"),
    **dict.fromkeys(sorted((CONFIGS / "inference").glob("*.toml")), "inference"),
    CONFIGS / "eval" / "prime-rl-evals.toml": "evals",
    CONFIGS / "eval" / "prime-rl-env-server.toml": "env-server",
}
PYTHON = os.environ.get("PRIME_RL_PYTHON", "")

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not PYTHON, reason="PRIME_RL_PYTHON does not name the Python of a prime-rl environment"
    ),
    pytest.mark.skipif(
        not all((data_folder() / name).exists() for name in FETCHED_SHA256),
        reason="the texts that most files name are not there: make oolong-sources",
    ),
]


def environment(**more: str) -> dict[str, str]:
    """The environment variables, with prime-rl's commands on PATH, as in its activated virtual environment."""
    folder = str(Path(PYTHON).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([folder, os.environ["PATH"]]),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        **more,
    }


@pytest.fixture(scope="module")
def resolved() -> dict[Path, dict[str, Any]]:
    """The resulting settings of each file."""
    script = Path(__file__).with_name("resolve_files.py")
    done = subprocess.run(
        [PYTHON, str(script), *(f"{command}={file}" for file, command in FILES.items())],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {Path(line["file"]): line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_no_value_repeats_a_default(resolved: dict[Path, dict[str, Any]], file: Path) -> None:
    """Without any one of its values, a file has other settings."""
    assert resolved[file]["repeated"] == []


def test_the_large_run_resolves_to_the_expected_settings(resolved: dict[Path, dict[str, Any]]) -> None:
    run = resolved[CONFIGS / "rl" / "oolong-qwen3-30b-a3b.toml"]["resolved"]
    assert run["orchestrator"]["num_train_workers"] == 4
    vllm = run["inference"]["vllm"]
    assert (vllm["tensor_parallel_size"], vllm["data_parallel_size"]) == (2, 2)
    assert (vllm["enable_lora"], vllm["max_lora_rank"]) == (True, 32)
    assert run["weight_broadcast"]["type"] == "filesystem"
    for kind in ("train", "eval"):
        for source in run["orchestrator"][kind]["source"]:
            harness = source["env"]["agent"]["harness"]
            assert (harness["max_iterations"], harness["train_subcalls"]) == (20, "direct")
            assert source["sampling"]["max_completion_tokens"] == 4096
    assert [source["interval"] for source in run["orchestrator"]["eval"]["source"]] == [25, 25]


@pytest.mark.parametrize(
    "file",
    [file for file, command in FILES.items() if command in ("rl", "sft")],
    ids=lambda file: str(file.relative_to(CONFIGS)),
)
def test_the_dry_run_of_a_file_succeeds(file: Path, tmp_path: Path) -> None:
    """The command runs from the root of the checkout, as documented."""
    done = subprocess.run(
        [
            FILES[file],
            "@",
            str(file.relative_to(ROOT)),
            "--dry-run",
            "--output-dir",
            str(tmp_path),
            "--run.name",
            "dry",
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.name for path in (tmp_path / "dry" / "configs").rglob("*.json")}
    assert (
        {"trainer.json", "orchestrator.json"} <= written
        if FILES[file] == "rl"
        else {"sft.json", "evals.json"} <= written
    )


def test_fine_tuning_trains_on_assistant_messages(tmp_path: Path) -> None:
    """prime-rl reads a rollout of the engine in the documented format."""
    replies = [
        repl_block("print(len(context))", "I look first."),
        finish("'5'"),
    ]
    with RLM(client=ScriptedClient(Script(replies))) as rlm:
        messages = rlm.completion("a b c", root_prompt="How long is it?").messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 2), ("validation", 1)):
        (data / f"{split}.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * count)
    text = (CONFIGS / "sft" / "rlm-qwen3-8b.toml").read_text(encoding="utf-8")
    file = tmp_path / "sft.toml"
    file.write_text(text.replace("data/rlm-sft", str(data)))
    script = Path(__file__).with_name("fine_tuning.py")
    done = subprocess.run(
        [PYTHON, str(script), str(file), str(build_tokenizer(tmp_path / "tokenizer"))],
        env=environment(HF_HOME=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (len(found["train"]), len(found["validation"])) == (2, 1)
    for row in [*found["train"], *found["validation"]]:
        assert [part.removeprefix("<think>\n\n</think>\n\n") for part in row["trained"]] == [
            f"{reply}<|im_end|>" for reply in replies
        ]
        assert messages[0]["content"] in row["text"]


@contextlib.contextmanager
def running(command: list[str], folder: Path, **variables: str) -> Iterator[Path]:
    """A program in the background, with its output in a file. At the end it must stop on request, with all its processes."""
    folder.mkdir()
    log = folder / "output.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdout=output, stderr=subprocess.STDOUT
        )
    children: list[psutil.Process] = []
    try:
        yield log
        assert process.poll() is None, log.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
        _, left = psutil.wait_procs(children, timeout=30)
        assert left == []
    finally:
        for child in [*children, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def typed(start: str, document: str = "docs/evaluation.md") -> list[str]:
    """The only command of a document that begins with `start`, split as in a shell."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    [line] = [line for line in blocks.splitlines() if line.startswith(start)]
    return shlex.split(line, comments=True)


def test_the_guide_names_a_file_that_resolves(resolved: dict[Path, dict[str, Any]]) -> None:
    """The test above runs its dry run."""
    dry = typed("rl @ configs/rl/oolong-qwen3-4b.toml --run.name oolong-4b --dry-run", "docs/training.md")
    assert ROOT / dry[2] in resolved
    readme = typed("rl @", "README.md")
    assert [*readme, "--dry-run"] == dry


def test_one_evaluation_runs_on_two_env_servers(tmp_path: Path) -> None:
    ports = {"5000": free_port(), "5001": free_port()}
    text = (CONFIGS / "eval" / "prime-rl-evals.toml").read_text(encoding="utf-8")
    for usual, port in ports.items():
        text = text.replace(f"tcp://localhost:{usual}", f"tcp://localhost:{port}")
    file = tmp_path / "evals.toml"
    file.write_text(text.replace("num_tasks = 24", "num_tasks = 3").replace("128_000", "16_000"))
    policy = ReferencePolicy(accuracy=1.0)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(policy, models=["MODEL"]))
        for number, port in enumerate(ports.values()):
            command = [
                word.replace("tcp://0.0.0.0:5000", f"tcp://127.0.0.1:{port}")
                for word in [*typed("env-server"), "--serve.pool.num-workers", "1"]
            ]
            stack.enter_context(running(command, tmp_path / f"server-{number}"))
        command = [
            word.replace("http://localhost:8000/v1", server.base_url)
            .replace("configs/eval/prime-rl-evals.toml", str(file))
            .replace("outputs/oolong", str(tmp_path / "out"))
            for word in typed("evals")
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(RLM_API_KEY="none"),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    report = [
        word.replace("outputs/oolong", str(tmp_path / "out"))
        for word in typed("python -m rlm_train.report outputs/oolong")
    ]
    episodes = [json.loads(line) for line in Path(report[-1], "traces.jsonl").read_text().splitlines()]
    names = sorted(episode["env"]["name"] for episode in episodes)
    assert names == ["oolong-1"] * 6 + ["oolong-2"] * 6
    assert all(trace["ok"] for episode in episodes for trace in episode["traces"])
    tasks = {episode["task"]["key"] for episode in episodes}
    assert len(tasks) == 6
    shown = subprocess.run(
        [sys.executable, *report[1:]],
        capture_output=True,
        text=True,
        env=environment(COLUMNS="100"),
        check=True,
    )
    assert re.search(r"all +12 +1\.000", shown.stdout), shown.stdout
