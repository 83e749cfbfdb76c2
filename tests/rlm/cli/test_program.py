"""The program: help, version, completion in shells, imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rlm.repl.repl_settings import REPLSettings

from .conftest import Run, environment


def test_help_names_every_command_and_version_is_printed(rlm: Run) -> None:
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


def test_help_has_the_default_of_a_cells_time(rlm: Run) -> None:
    said = " ".join(rlm("run", "--help").out.split())
    assert f"seconds for one cell (default: {REPLSettings().cell_timeout:g})" in said


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


def test_an_unknown_error_is_reported_as_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlm.cli import doctor, main

    def broken(options: object) -> int:
        raise LookupError("lost")

    monkeypatch.setattr(doctor, "main", broken)
    assert main(["doctor"]) == 70
    assert (
        capsys.readouterr().err
        == "rlm: LookupError: lost\nThis is a bug in rlm: please report it with the traceback that --debug shows.\n"
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
    ("rlm ", {"run", "doctor", "completion", "--help", "--version", "-h"}),
    ("rlm r", {"run"}),
    ("rlm run --max-i", {"--max-iterations"}),
    ("rlm run --context a.txt --debu", {"--debug"}),
    ("rlm run --backend ope", {"openai", "openrouter"}),
    ("rlm run --backend=ope", {"openai", "openrouter"}),
    ("rlm run --isolation sand", {"sandbox", "sandbox!"}),
    ("rlm run --model no", set()),
    ("rlm run -c no", {"notes one.txt", "notes"}),
    ("rlm run --context notes no", {"notes one.txt", "notes"}),
    ("rlm run --log-dir no", {"notes"}),
    ("rlm doctor --cal", {"--call"}),
    ("rlm completion b", {"bash"}),
]


@pytest.fixture
def shell(tmp_path: Path, rlm: Run) -> Callable[..., str]:
    """Runs code in a shell. `rlm` is on the PATH, and its completion script is in the file `script`."""
    (tmp_path / "notes one.txt").touch()
    (tmp_path / "notes").mkdir()

    def run(name: str, code: str, *words: str) -> str:
        assert rlm("completion", name).code == 0
        (tmp_path / "script").write_text(rlm("completion", name).out)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        start = {"bash": ["--norc", "-u"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
        done = subprocess.run(
            [name, *start, "-c", code, *words],
            cwd=tmp_path,
            env=environment(HOME=str(tmp_path), PATH=path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("line", "offered"), COMPLETIONS)
def test_bash_completes(line: str, offered: set[str], shell: Callable[..., str]) -> None:
    code = r"""
source ./script
COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
[[ $(complete -p rlm) =~ -F\ ([^ ]+) ]]
${BASH_REMATCH[1]} rlm
printf '%s\n' "${COMPREPLY[@]-}"
"""
    found = {word.rstrip(" /").replace("\\", "") for word in shell("bash", code, "bash", line).splitlines()}
    assert found - {""} == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(("line", "offered"), COMPLETIONS)
def test_fish_completes(line: str, offered: set[str], shell: Callable[..., str]) -> None:
    out = shell("fish", f"source script; complete -C '{line}'")
    found = {word.partition("\t")[0].rstrip(" /").replace("\\", "") for word in out.splitlines()}
    assert {word.rpartition("=")[2] for word in found} == offered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_loads_the_script(shell: Callable[..., str]) -> None:
    code = 'autoload -Uz compinit; compinit -u -d dump; eval "$(<script)"; print $_comps[rlm]'
    assert shell("zsh", code) == "_python_argcomplete\n"
