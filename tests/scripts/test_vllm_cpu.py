"""The parts of vLLM's launcher that need no vLLM."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import vllm_cpu
from scripts.steps import SetupError

ROOT = Path(__file__).parents[2]


def launch(*arguments: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.vllm_cpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_port_in_use_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = launch("--port", str(port), cache=tmp_path)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 cannot be used" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    done = launch("--modle", "x", cache=tmp_path)
    assert done.returncode == 2
    assert "--modle" in done.stderr


def test_options_after_two_dashes_go_to_vllm() -> None:
    ours, more = vllm_cpu.parse(["--port", "1234", "--", "--enable-lora", "--port"])
    assert ours.port == 1234
    assert more == ["--enable-lora", "--port"]


def test_too_little_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"needs about 1000000 GB of disk .* XDG_CACHE_HOME"):
        vllm_cpu.check_disk(tmp_path, 10**15, "the model")
    vllm_cpu.check_disk(tmp_path, 1, "the model")


def test_too_little_memory_is_refused_with_models_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_cpu, "available_memory", lambda: 6 * 10**9)
    with pytest.raises(
        SetupError, match=r"needs about 8 GB .* 6\.0 GB are free\. .*: qwen2\.5-coder-0\.5b, smollm2"
    ):
        vllm_cpu.check_memory("qwen2.5-coder-1.5b", "bfloat16")
    vllm_cpu.check_memory("smollm2-135m", "bfloat16")


def test_an_unsupported_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(SetupError, match="linux on aarch64"):
        vllm_cpu.check_machine()


def test_a_missing_python_3_11_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", "/bin/sh")
    with pytest.raises(SetupError, match=r"needs Python 3\.11"):
        vllm_cpu.find_python()


def test_errors_of_vllm_are_found_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "INFO: start\nRuntimeError: no such model: x\nnanobind: leaked 514 functions!\n- leaked function\n"
    )
    assert vllm_cpu.complaints(log) == "RuntimeError: no such model: x"
    log.write_text("INFO: start\n")
    assert vllm_cpu.complaints(log) == "INFO: start"


def test_requirements_are_pinned_exactly() -> None:
    lines = [line for line in vllm_cpu.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in lines)
    assert not any(line.startswith(("torchvision", "torchaudio", "torchcodec")) for line in lines)
