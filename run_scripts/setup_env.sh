#!/usr/bin/env bash
# Makes (or updates) the virtual environment with the CPU stack and prints its folder.
#   CPPO_VENV=DIR   where (default: .venv in this repository)
#   PYTHON=python3.11
# pip's own variables (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, ...) say where wheels come from; torch==2.13.0 must resolve
# to a CPU build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CPPO_VENV:-$root/.venv}
python=${PYTHON:-python3.11}
stamp=$venv/.cppo_verl_installed

wanted=$(cat "$root"/requirements/*.txt "$root/setup.py" | sha256sum)
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
  echo "$venv"
  exit 0
fi
echo "installing the CPU stack into $venv (about 4 GB, a few minutes)" >&2
command -v "$python" >/dev/null || { echo "setup_env.sh: $python not found; set PYTHON to a Python 3.11" >&2; exit 1; }
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
{
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[cpu,dev]"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$root/requirements/cpu-no-deps.txt"
} >&2
echo "$wanted" >"$stamp"
echo "$venv"
