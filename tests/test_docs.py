"""The documents say what is true: their snippets run, their links lead somewhere, their targets exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from rlm.testing import ChatRequest, finish, serve

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("environments/*/README.md")]
    if path.stat().st_size
)
_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)#]+)[^)]*\)")


def _blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return [match["text"] for match in _BLOCK.finditer(text) if match["language"] == language]


def _ids(document: Path) -> str:
    return str(document.relative_to(ROOT))


def _competent(request: ChatRequest) -> str:
    if request.is_subcall:
        return "seen"
    return finish(
        "sum('error' in line for line in lines)",
        "lines = context.splitlines() if isinstance(context, str) else context",
    )


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if _blocks(d, "python")], ids=_ids)
def test_python_snippets_run(document: Path) -> None:
    """One after the other, as a reader would type them."""
    names: dict[str, object] = {"__name__": "__main__"}
    output = io.StringIO()
    with serve(_competent, models=["Qwen/Qwen3-8B", "scripted"]) as server:
        for code in _blocks(document, "python"):
            code = code.replace("http://localhost:8000/v1", server.base_url)
            with contextlib.redirect_stdout(output):
                exec(compile(code, str(document), "exec"), names)
    if document.name == "README.md" and document.parent == ROOT:
        assert output.getvalue() == "1031\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_links_lead_somewhere(document: Path) -> None:
    for match in _LINK.finditer(document.read_text(encoding="utf-8")):
        target = match["target"]
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=_ids)
def test_make_targets_exist(document: Path) -> None:
    commands = "\n".join(_blocks(document, "sh"))
    targets = set(re.findall(r"^(?:\w+=\S+ )*make ([a-z0-9-]+)", commands, re.MULTILINE))
    for target in targets:
        done = subprocess.run(
            ["make", "--dry-run", "VENV=.missing", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_readme_names_both_commands() -> None:
    commands = [
        shlex.split(line, comments=True) for line in _blocks(ROOT / "README.md", "sh")[0].splitlines()
    ]
    assert commands == [["make", "quickstart"], ["make", "test"]]
