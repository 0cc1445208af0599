#!/usr/bin/env bash
# A real pretrained language model on tasks that others made, on two cores: SmolLM2-135M-Instruct (or a folder of yours)
# on tasks of reasoning-gym, with a short supervised start and then verl's own trainer. docs/real_model.md
#
#   MODEL=DIR     a Hugging Face folder; without it SmolLM2-135M-Instruct out of a Python package
#   TASKS=...     of reasoning-gym with their options, 'chain_sum(max_terms=3), gcd(max_value=60)'; TASKS=list names all
#   PROMPT=...    system message: its text, a name of reasoning-gym's, or none
#   WARM=1        0 leaves out the supervised start, which ends at a sampled accuracy of TARGET=0.25 and is refused below
#                 LOWEST=0.2 in a closer measurement
#   METHOD=cppo   any preset        STEPS=40   training steps        SEED=0   of the run; data and warm start stay the same
#   PROMPT_TOKENS=64 RESPONSE_TOKENS=24   the longest of each        LR=2e-5  MINIBATCH=4 of PROMPTS=16 x N=8
#   TRAIN=2048 VAL=256   questions
#   DTYPE=...     of the arithmetic, as on a GPU: bfloat16 where the CPU has it, which is two to three times faster, else
#                 float32; the trained weights are float32
#   RUN=runs/...  run directory; started again, the same command resumes there (FRESH=1 starts over)
#   PLAN=1        makes data, model and warm start, and stops before the training
# Further arguments are Hydra overrides for verl.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
METHOD=${METHOD:-cppo} STEPS=${STEPS:-40} SEED=${SEED:-0} RANKS=${RANKS:-1}
WARM=${WARM:-1} TARGET=${TARGET:-0.25} LOWEST=${LOWEST:-0.2}
TASKS=${TASKS:-chain_sum(min_terms=3, max_terms=4, min_digits=1, max_digits=1)}
PROMPT=${PROMPT:-Answer with the result only.}
WORK=${WORK:-$root/runs}
NAME=real_model EXTRA=real
REWARD=$root/data_prep/reasoning_gym_reward.py
THREADS=${THREADS:-2} # trainer and rollout engine take turns
PROMPTS=${PROMPTS:-16} N=${N:-8} MINIBATCH=${MINIBATCH:-4} # 4 updates a rollout batch
PROMPT_TOKENS=${PROMPT_TOKENS:-64} RESPONSE_TOKENS=${RESPONSE_TOKENS:-24} PACK=${PACK:-1024}
MODEL_LENGTH=$((PROMPT_TOKENS + RESPONSE_TOKENS))
LR=${LR:-2e-5} TEST_FREQ=${TEST_FREQ:-20} SAVE_FREQ=${SAVE_FREQ:-20} VAL_N=2 TRAIN=${TRAIN:-2048} VAL=${VAL:-256}
DTYPE=${DTYPE:-$(grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bfloat16 || echo float32)}
EXTRA_ARGS=(
  actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype="$DTYPE"
  actor_rollout_ref.rollout.dtype="$DTYPE"
  +actor_rollout_ref.actor.optim.override_optimizer_config.fused=true # Adam of 135 million weights: 0.06 instead of 0.3 s
  +actor_rollout_ref.rollout.engine_kwargs.vllm.block_size=32 # a prompt's 8 samples share its full blocks
)

[[ -z ${MODEL:-} ]] || MODEL=$(realpath "$MODEL") # cpu_run.sh goes to the repository
base=${MODEL:-$WORK/smollm2-135m-instruct}
given=${MODEL:+1}
set_of() { cksum <<<"$*" | cut -d' ' -f1; } # what belongs to one choice of tasks lies in folders of its number
DATA=$WORK/gym-$(set_of "$TASKS" "$PROMPT")-$TRAIN-$VAL
TITLE=real_model-$(basename "$base")-$(set_of "$TASKS" "$PROMPT" "$WARM" "$TARGET")
MODEL=$base
[[ $WARM == 0 ]] || MODEL=$WORK/warm-$(basename "$base")-$(set_of "$TASKS" "$PROMPT" "$TARGET" "$RESPONSE_TOKENS" "$DTYPE")

prepare() {
  if [[ $TASKS == list ]]; then
    "$python" -m data_prep.reasoning_gym_data --out "$WORK" --tasks list
    exit
  fi
  "$python" -m data_prep.reasoning_gym_data --out "$DATA" --tasks "$TASKS" --prompt "$PROMPT" \
    --train "$TRAIN" --val "$VAL" --warm "$((WARM ? 1024 : 0))"
  [[ -n $given ]] || "$python" -m data_prep.smollm2 --out "$base"
  [[ $WARM == 0 ]] || "$python" -m data_prep.warm_start --model "$base" --data "$DATA" --out "$MODEL" \
    --target "$TARGET" --lowest "$LOWEST" --max-new-tokens "$RESPONSE_TOKENS" --learning-rate 3e-4 --check-every 5 \
    --dtype "$DTYPE"
  [[ -z ${PLAN:-} ]] || exit 0
}
source "$root/run_scripts/cpu_run.sh"
"$python" -m data_prep.validations "$RUN" --data "$DATA" --warm-start "$MODEL"
