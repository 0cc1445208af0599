#!/usr/bin/env bash
# The tests, in an environment this script makes itself. All of them run in two processes; "fast" leaves out those that
# start the stack; with other arguments, pytest runs as they say: run_scripts/test.sh -k rules
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(CPPO_EXTRA=real "$root/run_scripts/setup_env.sh")
# Pages are tested in a real browser: installed here where that is possible, and else pytest says what was skipped.
has() { command -v "$1" >/dev/null; }
if ! { has chromium && has chromedriver; } && [[ $(id -u) == 0 ]] && has apt-get; then
  echo "test.sh: installing chromium and chromium-driver for the tests of pages" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; } >/dev/null ||
    echo "test.sh: chromium could not be installed, so the pages are not tested in a browser" >&2
fi
cd "$root"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 VERL_PLATFORM=cpu
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
types=$(mktemp)
"$venv/bin/mypy" >"$types" 2>&1 & # beside the tests: half a minute without its cache
together=(--dist loadgroup --no-loadscope-reorder) # tests/conftest.py says what stays together and what begins
[[ ${1:-} != fast ]] || set -- -m "not stack" -n 2 "${together[@]}" "${@:2}"
[[ $# -gt 0 ]] || set -- -n 2 "${together[@]}"
unset PYTHONDONTWRITEBYTECODE # containers set it; pytest rewrites every test file at each start then
export RAY_worker_niceness=0 # else the real stack yields to the other process
status=0
"$venv/bin/python" -m pytest "$@" || status=$?
wait $! || status=1
cat "$types"
rm "$types"
exit "$status"
