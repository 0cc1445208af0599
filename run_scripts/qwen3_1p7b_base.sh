#!/usr/bin/env bash
# Qwen3-1.7B-Base, Table 3 of the paper. Usage and further knobs: run_scripts/train.sh
set -euo pipefail
export NAME=qwen3_1p7b_base MODEL_PATH=${MODEL_PATH:-Qwen/Qwen3-1.7B-Base} STEPS=${STEPS:-680}
export PROMPTS=${PROMPTS:-64} N=${N:-8} MINIBATCH=${MINIBATCH:-32} RESPONSE_TOKENS=${RESPONSE_TOKENS:-8192}
export DELTA=${DELTA:-0.15} DELTA_B=${DELTA_B:-0.020} W_MIN=${W_MIN:-0.8} BUDGET=${BUDGET:-quantile}
# Memory: two longest sequences (2 x 9,216 tokens) a GPU and micro-batch.
export SP=${SP:-1} TP=${TP:-1} TOKENS_PER_GPU=${TOKENS_PER_GPU:-18432} GPU_SHARE=${GPU_SHARE:-0.8} OFFLOAD=${OFFLOAD:-none}
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" "$@"
