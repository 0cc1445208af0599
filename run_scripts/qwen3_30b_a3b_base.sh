#!/usr/bin/env bash
# Qwen3-30B-A3B-Base, Table 3 of the paper. Usage and further knobs: run_scripts/train.sh
set -euo pipefail
export NAME=qwen3_30b_a3b_base MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-30B-A3B-Base} STEPS=${STEPS:-560}
export PROMPTS=${PROMPTS:-256} N=${N:-16} MINIBATCH=${MINIBATCH:-32} RESPONSE_TOKENS=${RESPONSE_TOKENS:-16384}
export DELTA=${DELTA:-0.20} DELTA_B=${DELTA_B:-0.020} W_MIN=${W_MIN:-0.8} BUDGET=${BUDGET:-quantile}
# Memory: two longest sequences (2 x 17,408 tokens) over 4 GPUs. One node of 80 GB GPUs holds the states on the host.
export SP=${SP:-4} TP=${TP:-4} TOKENS_PER_GPU=${TOKENS_PER_GPU:-8704} GPU_SHARE=${GPU_SHARE:-0.8} OFFLOAD=${OFFLOAD:-$([[ ${NNODES:-1} == 1 ]] && echo all || echo states)}
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" "$@"
