#!/usr/bin/env bash
# Makes (or updates) a virtual environment and prints its folder: setup_env.sh [cpu|gpu]
#
#   cpu   the real stack without a GPU, for quickstart and tests: about 3 GB, in .venv
#   gpu   verl, vLLM and torch for CUDA 13 in the versions of requirements/gpu-constraints.txt: about 11 GB, in .venv-gpu;
#         then flash attention (run_scripts/flash_attention.sh has its variables). Needs neither GPU nor CUDA toolkit.
#
#   CPPO_VENV=DIR   where
#   CPPO_EXTRA=real besides, an extra of setup.py: real is reasoning-gym and a reader of GGUF, for real_model.sh and tests
#   CPPO_PIP=1      install with pip. Else uv does, in a tenth of the time, and pip only where uv cannot be had.
#   PYTHON=python3.11
# pip's own variables and files (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, pip.conf, ...) say where wheels come from, to uv as
# well (run_scripts/uv_settings.py); for cpu, torch==2.13.0 must resolve to a CPU build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
say() { echo "setup_env.sh: $*" >&2; }
die() { say "$*"; exit 1; }
case ${1:-cpu} in
  cpu) stack=cpu folder=.venv size="3 GB" ;;
  gpu) stack=gpu folder=.venv-gpu size="11 GB" ;;
  *) die "'$1' is not one of: cpu gpu" ;;
esac
venv=${CPPO_VENV:-$root/$folder}
python=${PYTHON:-python3.11}
stamp=$venv/.cppo_verl_installed
unfinished=$venv/.cppo_verl_unfinished # while it is there, packages may lie half unpacked and pass for installed
requirements=$root/requirements
flash() { [[ $stack == cpu ]] || "$root/run_scripts/flash_attention.sh" "$venv/bin/python"; }

pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
uv() { # uv's command into "installer", pip's settings as "variables" (not by env, which reads "=" in a path as one more)
  installer=("${pip[@]}") variables=(UV_INDEX_STRATEGY=unsafe-best-match)
  [[ -z ${CPPO_PIP:-} ]] || return 0
  local settings
  if ! [[ -x $venv/bin/uv ]] && ! "${pip[@]}" "uv>=0.5" 2>/dev/null; then
    say "uv could not be installed, so pip installs: minutes instead of half a minute"
  elif ! settings=$("$venv/bin/python" "$root/run_scripts/uv_settings.py"); then
    say "so pip installs: minutes instead of half a minute"
  else
    mapfile -t variables <<<"$settings"
    installer=("$venv/bin/uv" pip install --quiet --python "$venv/bin/python")
  fi
}
install() { # with a sign of life every five seconds
  local begun=$SECONDS
  touch "$unfinished"
  (export "${variables[@]}" && exec "${installer[@]}" "$@") >&2 &
  local job=$!
  trap 'kill "$job" 2>/dev/null' EXIT
  while sleep 1 && kill -0 "$job" 2>/dev/null; do
    (((SECONDS - begun) % 5)) || say "$((SECONDS - begun)) s, $(du -sm "$venv" 2>/dev/null | cut -f1) MB in place"
  done
  trap - EXIT
  wait "$job"
  rm "$unfinished"
}

wanted=$(cat "$requirements"/*.txt "$root/setup.py" | sha256sum | sed "s/-/$stack/")
extra() {
  local has=$stamp.${CPPO_EXTRA:-}
  [[ -n ${CPPO_EXTRA:-} && ! ($(cat "$has" 2>/dev/null) == "$wanted") ]] || return 0
  [[ -f $requirements/$CPPO_EXTRA.txt ]] || die "CPPO_EXTRA='$CPPO_EXTRA' is no file of requirements/"
  say "installing requirements/$CPPO_EXTRA.txt into $venv"
  uv
  install -r "$requirements/$CPPO_EXTRA.txt"
  echo "$wanted" >"$has"
}
if [[ ! -e $unfinished && -f $stamp && $(cat "$stamp") == "$wanted" ]]; then
  extra
  [[ -z ${FLASH_ATTN:-}${FLASH_ATTN_WHEEL:-} ]] || flash
  echo "$venv"
  exit 0
fi
if [[ -f $stamp && $(sed "s/.* //; s/^-$/cpu/" "$stamp") != "$stack" ]]; then
  die "$venv holds the other stack (vLLM's two builds cannot lie in one environment); set CPPO_VENV, or delete it"
fi
say "installing the ${stack^^} stack into $venv (about $size)"
command -v "$python" >/dev/null || die "$python not found; set PYTHON to a Python 3.11"
if [[ -e $unfinished ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  clear=$([[ ! -f $venv/pyvenv.cfg ]] || echo --clear) # what an interrupted start left
  "$python" -m venv $clear "$venv"
fi
uv
if [[ $stack == gpu ]]; then
  install -e "$root[gpu,dev]" -c "$requirements/gpu-constraints.txt"
  flash
else
  install -e "$root[cpu,dev]"
  install --no-deps -r "$requirements/cpu-no-deps.txt"
fi
echo "$wanted" >"$stamp"
extra
echo "$venv"
