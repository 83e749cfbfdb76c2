"""The commands of docs/cli.md, run in a shell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlm.cli.status import ExitCode
from rlm.testing import ChatRequest, finish, serve

from .conftest import environment

ROOT = Path(__file__).parents[3]


def clerk(request: ChatRequest) -> str:
    """Answers in the form of the schema, if there is one, or else with the size of the context."""
    said = "\n".join(str(message["content"]) for message in request.messages)
    if "JSON schema" in said:
        return finish("json.dumps({'who': 'Ada'})", "import json")
    return finish("f'{type(context).__name__} of {len(context)}'")


def blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if re.search(r"^rlm ", block, re.MULTILINE)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.txt").write_text("It was decided.")
    for name in ("a.log", "b/c.log"):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).write_text(name)
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"who": {"type": "string"}}}')
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_commands_of_the_docs_work(folder: Path) -> None:
    with serve(clerk) as server:
        typed = "\n".join(blocks("docs/cli.md")).replace("http://localhost:8000/v1", server.base_url)
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", f'rlm() {{ {sys.executable} -m rlm "$@"; }}\n{typed}'],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("rlm run can work.\nstr of 15\nlist of 2\n")
    assert (folder / "answer.txt").read_text() == "str of 15\n"
    assert json.loads((folder / "result.json").read_text())["parsed"] == {"who": "Ada"}
    assert (folder / "rlm.fish").read_text().count("complete --command rlm ") == 1


def test_the_table_has_every_exit_code() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(",")} == set(ExitCode)
