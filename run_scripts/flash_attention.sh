#!/usr/bin/env bash
# Gives an environment flash attention, or says what is left: run_scripts/flash_attention.sh [PYTHON]
#
#   FLASH_ATTN=auto    what is there already, else FLASH_ATTN_WHEEL, else a wheel of flash-attn that pip's own indexes
#                      have for this Python and torch; else the kernel that transformers takes from the hub
#   FLASH_ATTN=build   compiled here: needs nvcc of torch's CUDA version, minutes on 64 cores, hours on a few
#   FLASH_ATTN=none    nothing is done
#   FLASH_ATTN_WHEEL=  a wheel, by path or address, built for this Python, torch and CUDA
#   MAX_JOBS=          compilers at once, about 5 GB of memory each (default: by cores and memory)
#   FLASH_ATTN_CUDA_ARCHS=  80 A100, 90 H100, 100 B200, 120 RTX 50 (default: that of the GPU here, else all four)
# The ways, and what each gives: docs/gpu.md
set -euo pipefail
python=${1:-python3}
version=2.8.3 # as in verl's own image
die() { echo "flash_attention.sh: $*" >&2; exit 1; }
say() { echo "flash attention: $*" >&2; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
error() { "$python" -c "from flash_attn import flash_attn_varlen_func" 2>&1 | tail -n 1; }
loads() { "$python" -c "from flash_attn import flash_attn_varlen_func" 2>/dev/null; }
installed() { "$python" -c "import importlib.metadata as m; print('flash-attn', m.version('flash-attn'))"; }
drop() { # a package that does not load stops transformers and vLLM, which look for its name
  say "$(installed) does not load ($(error)); taken out again"
  pip uninstall --quiet --yes flash-attn >&2
}
architecture() { # of the GPU here, as flash-attn names it
  "$python" -c "import torch; print({8: 80, 9: 90, 10: 100, 12: 120}[torch.cuda.get_device_capability()[0]])" 2>/dev/null ||
    echo "80;90;100;120"
}
build() {
  local cuda nvcc wanted
  cuda=$("$python" -c "import torch; print(torch.version.cuda or '')") || die "no torch in $python: run setup_env.sh gpu first"
  [[ -n $cuda ]] || die "the torch in $python is a build without CUDA"
  nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc wanted=${cuda%%.*}
  command -v "$nvcc" >/dev/null || die "FLASH_ATTN=build needs nvcc of CUDA $cuda: install NVIDIA's CUDA toolkit $cuda and set \
CUDA_HOME, or take verl's image (docs/gpu.md)"
  "$nvcc" --version | grep -q "release $wanted\." || die "$nvcc is not of CUDA $wanted, which torch was built for; set CUDA_HOME"
  pip install --quiet "setuptools>=77" wheel ninja packaging psutil >&2
  say "compiling $version; MAX_JOBS=${MAX_JOBS:-by cores and memory}"
  FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTN_CUDA_ARCHS=${FLASH_ATTN_CUDA_ARCHS:-$(architecture)} \
    pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall --no-binary flash-attn "flash-attn==$version" >&2
  loads || { drop; die "it was compiled, but does not load"; }
  say "$(installed) compiled"
}

case ${FLASH_ATTN:-auto} in
  none) exit ;;
  build) build; exit ;;
  auto) ;;
  *) die "FLASH_ATTN='$FLASH_ATTN' is not one of: auto build none" ;;
esac
if installed >/dev/null 2>&1; then
  loads && { say "$(installed) is there"; exit; }
  drop
fi
if [[ -n ${FLASH_ATTN_WHEEL:-} ]]; then
  pip install --quiet --no-deps "$FLASH_ATTN_WHEEL" >&2
  loads || { drop; die "$FLASH_ATTN_WHEEL was built for another Python, torch or CUDA"; }
  say "$(installed) from $FLASH_ATTN_WHEEL"
  exit
fi
if pip install --quiet --no-deps --only-binary :all: "flash-attn==$version" >/dev/null 2>&1; then
  loads && { say "$(installed), a wheel of your index"; exit; }
  drop
fi
say "no wheel of flash-attn $version for this Python and torch. transformers takes the kernel from the hub at the first start \
(package kernels); without the hub, recipes take sdpa. FLASH_ATTN=build compiles it, FLASH_ATTN_WHEEL= names a wheel, and \
verl's image has it (docs/gpu.md)"
