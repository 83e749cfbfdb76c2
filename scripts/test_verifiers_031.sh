#!/bin/sh
# Runs the tests that use verifiers with the oldest supported version. The lock file holds the newest.
set -eu
venv=${VENV:-.cache/venv-verifiers-0.3.1}
PYTHON=${PYTHON:-python3} VENV=$venv sh scripts/setup.sh
uv=$(command -v uv || echo "$venv/bin/uv")
if [ -x "$uv" ]; then
    UV_LINK_MODE=copy "$uv" pip install --quiet --python "$venv/bin/python" "verifiers==0.3.1"
else
    "$venv/bin/python" -m pip install --quiet "verifiers==0.3.1"
fi
exec "$venv/bin/python" -m pytest -n auto tests/training tests/oolong/test_taskset.py tests/oolong/test_quickstart.py \
    tests/oolong/test_rewards.py tests/oolong/test_attacks.py \
    tests/oolong/test_configs.py tests/configs tests/acceptance/test_evaluation.py
