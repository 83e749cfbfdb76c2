#!/bin/sh
# Makes the virtual environment from requirements.lock: with uv if it is installed or pip can install it, else with pip.
# PYTHON is the interpreter to use (3.11 or later), VENV the folder.
set -eu
python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version 2>&1) is too old: name a Python 3.11 or later, e.g. make PYTHON=python3.12" >&2
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
    # Copies, not links: a cache on another file system cannot be linked to, and uv warns about it each time.
    export UV_LINK_MODE=copy VIRTUAL_ENV="$PWD/$venv"
    case $venv in /*) VIRTUAL_ENV=$venv ;; esac
    install() { "$uv" pip install --quiet "$@"; }
else
    install() { "$venv/bin/python" -m pip install --quiet "$@"; }
fi
install --require-hashes -r requirements.lock || {
    echo "setup: requirements.lock does not install on $("$venv/bin/python" --version 2>&1), see above. If a package has no" \
        "build for this Python yet: use an earlier one (make clean; make PYTHON=python3.13 setup), or lock anew (make lock)" >&2
    exit 1
}
install --no-deps --no-build-isolation -e . -e training -e environments/oolong
