#!/usr/bin/env bash
# The tests, in an environment this script makes itself. All of them run in two processes, file by file; with arguments,
# pytest runs as they say: run_scripts/test.sh -k rules
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$("$root/run_scripts/setup_env.sh")
cd "$root"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 VERL_PLATFORM=cpu
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
[[ $# -gt 0 ]] || set -- -n 2 --dist loadfile --no-loadscope-reorder
export RAY_worker_niceness=0 # else the real stack yields to the other process
exec "$venv/bin/python" -m pytest "$@"
