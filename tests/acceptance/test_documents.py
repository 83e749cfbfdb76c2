"""The commands that the documents tell people to type."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oolong.reference import ReferencePolicy
from rlm.testing import serve

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(180)


def commands(document: str, start: str) -> list[list[str]]:
    """The commands of the sh blocks of a document that begin with `start`, as a shell would split them."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def test_the_evaluation_of_the_readme_and_its_report(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    [command] = commands("README.md", "vf-eval")
    assert commands("docs/evaluation.md", "vf-eval oolong -n") == [command]
    with serve(ReferencePolicy(accuracy=1.0), models=["MODEL"]) as server:
        typed = [word.replace("http://localhost:8000/v1", server.base_url) for word in command]
        program = start(*verifiers_command(*typed), RLM_API_KEY="none")
        code, left = program.wait()
    assert code == 0, program.output
    assert left == []
    [run] = (tmp_path / "outputs").iterdir()
    [[_, *report]] = commands("docs/evaluation.md", "python -m rlm_train.report")
    table = start(sys.executable, *[word.replace("outputs/<run>", str(run)) for word in report])
    code, _ = table.wait()
    assert code == 0, table.output
    assert re.search(r"all +16 +1\.000", table.output)


def test_the_evaluation_from_a_file(
    start: Callable[..., Any], verifiers_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    [command] = commands("docs/evaluation.md", "vf-eval @ configs/eval/oolong.toml")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with serve(ReferencePolicy(accuracy=1.0), models=["MODEL"]) as server:
        small = ["--client.base-url", server.base_url, "-n", "3", "-r", "1"]
        program = start(*verifiers_command(*command, *small), RLM_API_KEY="none")
        code, left = program.wait()
    assert code == 0, program.output
    assert left == []
