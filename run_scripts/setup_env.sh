#!/usr/bin/env bash
# Makes (or updates) a virtual environment and prints its folder: setup_env.sh [cpu|gpu]
#
#   cpu   the real stack without a GPU, for quickstart and tests: about 4 GB, in .venv
#   gpu   verl, vLLM and torch for CUDA 13 in the versions of requirements/gpu-constraints.txt: about 11 GB, in .venv-gpu;
#         then flash attention (run_scripts/flash_attention.sh has its variables). Needs neither GPU nor CUDA toolkit.
#
#   CPPO_VENV=DIR   where
#   CPPO_EXTRA=real besides, an extra of setup.py: real is reasoning-gym and a reader of GGUF, for real_model.sh and tests
#   PYTHON=python3.11
# pip's own variables (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, ...) say where wheels come from; for cpu, torch==2.13.0 must
# resolve to a CPU build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
die() { echo "setup_env.sh: $*" >&2; exit 1; }
case ${1:-cpu} in
  cpu) stack=cpu folder=.venv size="4 GB" ;;
  gpu) stack=gpu folder=.venv-gpu size="11 GB" ;;
  *) die "'$1' is not one of: cpu gpu" ;;
esac
venv=${CPPO_VENV:-$root/$folder}
python=${PYTHON:-python3.11}
stamp=$venv/.cppo_verl_installed
flash() { [[ $stack == cpu ]] || "$root/run_scripts/flash_attention.sh" "$venv/bin/python"; }
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2; }

wanted=$(cat "$root"/requirements/*.txt "$root/setup.py" | sha256sum | sed "s/-/$stack/")
extra() {
  local has=$stamp.${CPPO_EXTRA:-}
  [[ -n ${CPPO_EXTRA:-} && ! ($(cat "$has" 2>/dev/null) == "$wanted") ]] || return 0
  [[ -f $root/requirements/$CPPO_EXTRA.txt ]] || die "CPPO_EXTRA='$CPPO_EXTRA' is no file of requirements/"
  echo "installing requirements/$CPPO_EXTRA.txt into $venv" >&2
  pip -r "$root/requirements/$CPPO_EXTRA.txt"
  echo "$wanted" >"$has"
}
if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
  extra
  [[ -z ${FLASH_ATTN:-}${FLASH_ATTN_WHEEL:-} ]] || flash
  echo "$venv"
  exit 0
fi
if [[ -f $stamp && $(sed "s/.* //; s/^-$/cpu/" "$stamp") != "$stack" ]]; then
  die "$venv holds the other stack (vLLM's two builds cannot lie in one environment); set CPPO_VENV, or delete it"
fi
echo "installing the ${stack^^} stack into $venv (about $size, a few minutes)" >&2
command -v "$python" >/dev/null || die "$python not found; set PYTHON to a Python 3.11"
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
if [[ $stack == gpu ]]; then
  pip -e "$root[gpu,dev]" -c "$root/requirements/gpu-constraints.txt"
  flash
else
  pip -e "$root[cpu,dev]"
  pip --no-deps -r "$root/requirements/cpu-no-deps.txt"
fi
echo "$wanted" >"$stamp"
extra
echo "$venv"
