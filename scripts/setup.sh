#!/bin/sh
# Makes the virtual environment from requirements.lock: with uv if it is there or can be had by pip, else with pip.
# PYTHON is the interpreter to use, VENV the folder.
set -eu
python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "setup: $("$python" --version 2>&1) is not supported: name a Python 3.11, 3.12 or 3.13, e.g. make PYTHON=python3.12" >&2
    exit 1
}

if [ ! -x "$venv/bin/python" ]; then
    echo "setup: making $venv"
    "$python" -m venv "$venv" || {
        echo "setup: python -m venv failed; on Debian and Ubuntu it is in the package python3-venv" >&2
        exit 1
    }
fi

if command -v uv >/dev/null 2>&1; then
    uv=$(command -v uv)
elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 && ! "$venv/bin/python" -m ensurepip >/dev/null 2>&1; then
    echo "setup: $venv has no pip, and uv is not on the PATH: remove $venv (make clean), or install uv" >&2
    exit 1
elif "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null; then
    uv=$venv/bin/uv
else
    uv=
fi

echo "setup: installing"
if [ -n "$uv" ]; then
    # Files are copied: a cache on another file system cannot be linked to, and says so each time.
    export UV_LINK_MODE=copy VIRTUAL_ENV="$PWD/$venv"
    case $venv in /*) VIRTUAL_ENV=$venv ;; esac
    "$uv" pip install --quiet --require-hashes -r requirements.lock
    "$uv" pip install --quiet --no-deps --no-build-isolation -e . -e training -e environments/oolong
else
    "$venv/bin/python" -m pip install --quiet --require-hashes -r requirements.lock
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e . -e training -e environments/oolong
fi
