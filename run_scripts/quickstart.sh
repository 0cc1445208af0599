#!/usr/bin/env bash
# The main job: verl's own trainer (Ray, FSDP2, vLLM) teaches a tiny Qwen3 multi-step arithmetic with a trust region,
# on a machine with nothing but Python 3.11. Makes its environment, data and model, trains, and writes a report.
#
#   METHOD=cppo   any preset: cppo cppo_soft cppo_kl dppo_tv dppo_kl ...
#   MODE=sync     which of verl's trainers: sync colocate_async (docs/staleness.md)
#   STEPS=30      training steps          SEED=0    of data, model and run      RANKS=1   data-parallel ranks
#   PROMPTS=32 LR=3e-4 DECAY=cosine (or constant) TEST_FREQ=10 SAVE_FREQ=10
#   RUN=runs/...  run directory; started again, the same command resumes there (FRESH=1 starts over)
# Further arguments are Hydra overrides for verl: run_scripts/quickstart.sh actor_rollout_ref.actor.optim.lr=1e-4
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
METHOD=${METHOD:-cppo} STEPS=${STEPS:-30} SEED=${SEED:-0} RANKS=${RANKS:-1}
WORK=${WORK:-$root/runs}
NAME=quickstart
DATA=$WORK/arithmetic-seed$SEED
MODEL=$WORK/tiny-qwen3-seed$SEED
REWARD=$root/data_prep/arithmetic_reward.py
EXTRA="" TITLE=""
EXTRA_ARGS=(actor_rollout_ref.actor.optim.lr_scheduler_type="${DECAY:-cosine}") # large steps first, where the region binds
THREADS=1 # a process: trainer, rollout engine and Ray share two cores
PROMPTS=${PROMPTS:-32} N=8 MINIBATCH=4 # 8 updates a rollout batch
PROMPT_TOKENS=48 RESPONSE_TOKENS=64 MODEL_LENGTH=128 PACK=1024
LR=${LR:-3e-4} TEST_FREQ=${TEST_FREQ:-10} SAVE_FREQ=${SAVE_FREQ:-10} VAL_N=2

prepare() {
  "$python" -m data_prep.arithmetic --out "$DATA" --seed "$SEED"
  OMP_NUM_THREADS=2 "$python" -m data_prep.tiny_qwen3 --data "$DATA" --out "$MODEL" --seed "$SEED"
}
source "$root/run_scripts/cpu_run.sh"
