"""The program itself: help, version, completion scripts, what it loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from .conftest import Run, environment


def test_help_and_version(rlm: Run) -> None:
    done = rlm("--help")
    assert done.code == 0
    for command in ("run", "doctor", "completion"):
        assert f"\n    {command}" in done.out
        said = rlm(command, "--help")
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith(f"usage: rlm {command}")
    assert rlm("--version").out.startswith("rlm 0.")
    for words in ([], ["rnu"]):
        done = rlm(*words)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("usage: rlm")


def test_the_command_is_installed() -> None:
    [script] = entry_points(group="console_scripts", name="rlm")
    assert script.value == "rlm.cli:main"
    assert Path(sys.executable).with_name("rlm").exists()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from rlm.cli import main; main(['run', '--help'])\n"
        "print([m for m in ('aiohttp', 'rich', 'pydantic', 'jsonschema', 'openai', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rlm.cli import doctor, main

    def broken(options: object) -> int:
        raise LookupError("lost")

    monkeypatch.setattr(doctor, "main", broken)
    assert main(["doctor"]) == 70
    assert (
        capsys.readouterr().err
        == "rlm: LookupError: lost\nThis is a bug of rlm; --debug shows the traceback.\n"
    )
    assert main(["doctor", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rlm.cli import doctor, main

    def warning(options: object) -> int:
        warnings.simplefilter("always")
        warnings.warn("there is no sandbox for the code of models", stacklevel=1)
        return 0

    monkeypatch.setattr(doctor, "main", warning)
    assert main(["doctor"]) == 0
    assert capsys.readouterr() == ("", "rlm: warning: there is no sandbox for the code of models\n")


COMPLETIONS = [
    (["rlm", ""], {"run", "doctor", "completion"}),
    (["rlm", "r"], {"run"}),
    (["rlm", "run", "--max-i"], {"--max-iterations"}),
    (["rlm", "run", "--context", "a.txt", "--debu"], {"--debug"}),
    (["rlm", "run", "--backend", "ope"], {"openai", "openrouter"}),
    (["rlm", "run", "--isolation", "sand"], {"sandbox", "sandbox!"}),
    (["rlm", "run", "-c", "no"], {"notes one.txt", "notes"}),
    (["rlm", "run", "--context", "notes", "no"], {"notes one.txt", "notes"}),
    (["rlm", "run", "--log-dir", "no"], {"notes"}),
    (["rlm", "doctor", "--cal"], {"--call"}),
    (["rlm", "completion", ""], {"bash", "zsh", "fish"}),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "notes one.txt").touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        *COMPLETIONS,
        (
            ["rlm", "run", "--backend", "=", "ope"],
            {"openai", "openrouter"},
        ),  # as readline splits --backend=ope
        (["rlm", "run", "--backend", "="], {"openai", "vllm"}),
        (["rlm", "run", "--model", ""], set()),
    ],
)
def test_bash_completes(
    words: list[str], offered: set[str], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlm.cli import main

    assert main(["completion", "bash"]) == 0
    script = f"""
{capsys.readouterr().out}
COMP_WORDS=("$@")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p rlm | sed -E 's/.*-F ([^ ]+) .*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-u", "-c", script, "bash", *words],
        cwd=files,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    found = {line for line in done.stdout.splitlines() if line}
    assert done.stderr == ""
    assert found == offered if words[-1] not in ("", "=") else found >= offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(("words", "offered"), COMPLETIONS)
def test_fish_completes(words: list[str], offered: set[str], files: Path, rlm: Run) -> None:
    (files / "rlm.fish").write_text(rlm("completion", "fish").out)
    quoted = " ".join(words).replace("'", "\\'")
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source rlm.fish; complete -C '{quoted}'"],
        cwd=files,
        env=environment(HOME=str(files)),
        capture_output=True,
        text=True,
        check=True,
    )
    found = {line.partition("\t")[0].rstrip("/") for line in done.stdout.splitlines()}
    assert offered <= found


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_script(files: Path, rlm: Run) -> None:
    (files / "_rlm").write_text(rlm("completion", "zsh").out)
    done = subprocess.run(
        ["zsh", "-f", "-c", "autoload -Uz compinit; compinit -u -d dump; source ./_rlm; print $_comps[rlm]"],
        cwd=files,
        env=environment(HOME=str(files)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("_rlm\n", "")
