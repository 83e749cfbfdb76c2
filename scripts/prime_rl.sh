#!/bin/sh
# Makes an environment with our packages in which prime-rl's orchestrator, env-server, eval and `rl --dry-run` run without
# CUDA. PRIME_RL is a prime-rl checkout, PYTHON a Python 3.12, VENV the folder of the environment.
#
# Parts that need CUDA (vLLM, and the trainer's kernels) are left out. The package index has torch with CUDA, 2.5 GB. With
# UV_TORCH_BACKEND=cpu PyTorch's own CPU build is taken, if its index can be reached.
set -eu
checkout=${PRIME_RL:?name a prime-rl checkout: make prime-rl PRIME_RL=path/to/prime-rl}
venv=${VENV:-.cache/prime-rl}

if [ ! -f "$checkout/src/prime_rl/entrypoints/rl.py" ]; then
    echo "prime-rl: $checkout is not a checkout of prime-rl" >&2
    exit 1
fi
python=
for candidate in "${PYTHON:-}" python3.12 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "prime-rl needs Python 3.12: name one, e.g. make prime-rl PYTHON=path/to/python3.12" >&2
    exit 1
fi

if [ ! -x "$venv/bin/python" ]; then
    echo "prime-rl: making $venv"
    "$python" -m venv "$venv"
fi
uv=$(command -v uv || true)
if [ -z "$uv" ]; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
    uv=$venv/bin/uv
fi
export UV_LINK_MODE=copy
install() {
    "$uv" pip install --quiet --python "$venv/bin/python" --constraint "$venv/constraints.txt" "$@"
}

# The versions in its lock file, for packages of the package index.
"$venv/bin/python" - "$checkout/uv.lock" > "$venv/constraints.txt" <<'END'
import sys, tomllib

for package in tomllib.load(open(sys.argv[1], "rb"))["package"]:
    name, version = package["name"], package.get("version", "").partition("+")[0]
    of_torch = name == "triton" or name.startswith(("nvidia-", "cuda-"))  # torch requires its own versions
    if name == "torch" or (package["source"].get("registry") == "https://pypi.org/simple" and not of_torch):
        print(f"{name}=={version}")
# The lock file names a commit of verifiers. This is the release that fits.
print("verifiers==0.3.1")
END

echo "prime-rl: installing"
install torch transformers verifiers prime-pydantic-config renderers wandb wandb-workspaces prime openai httpx pyzmq msgspec \
    orjson loguru rich jinja2 tenacity aiolimiter uvloop setproctitle psutil prometheus-client nvidia-ml-py pybase64 numpy \
    pandas pyarrow datasets beartype jaxtyping tomli tomli-w python-dateutil hatchling editables
# modelexpress requires a protobuf that is too old for other packages. prime-rl overrides that requirement too.
install --no-deps modelexpress grpcio protobuf
install --no-deps -e "$checkout" -e "$checkout/packages/prime-rl-configs" -e . -e training -e environments/oolong
"$venv/bin/python" -c "import prime_rl.configs.rl, rlm_train, oolong"
echo "prime-rl: ready. PRIME_RL_PYTHON=$venv/bin/python make test-prime-rl"
