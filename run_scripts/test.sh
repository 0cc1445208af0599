#!/usr/bin/env bash
# The tests, in an environment this script makes itself. Arguments go to pytest: run_scripts/test.sh -k rules
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$("$root/run_scripts/setup_env.sh")
cd "$root"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 VERL_PLATFORM=cpu
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest "$@"
