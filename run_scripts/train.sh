#!/usr/bin/env bash
# Trains a row of the paper's Table 1. The scripts named after a model set that model's numbers and come here:
#
#   bash run_scripts/qwen3_1p7b_base.sh [plan|config|overrides] [HYDRA OVERRIDES...]
#
#   plan       settings, memory of a GPU, GPU-hours, overrides, and what the run would refuse (then exit status 2);
#              starts nothing and needs only Python
#   config     verl's config, composed and resolved, as YAML; starts nothing
#   overrides  the overrides alone, a line each
#
#   METHOD=cppo            a rule of Table 1 or an ablation; METHOD=list names them
#   ESTIMATOR=topk         of the divergence: topk (K = 20, the paper's main results) or binary
#   FOLLOW=paper           or scripts: the authors' public code where it differs (docs/recipes.md)
#   MODEL_PATH=            a folder or a hub id          TRAIN_FILE=, VAL_FILES="A B C"   parquet in DATA=data
#   REWARD_FILE=data_prep/math_reward.py                 scores the answers
#   NNODES=1 NGPUS_PER_NODE=8                            several nodes: run_scripts/start_ray.sh first
#   RUN=runs/MODEL/METHOD-seed0   run directory; started again, the same command resumes there (FRESH=1 starts over)
#   STEPS= SEED=0 TEST_FREQ=10 SAVE_FREQ=20 LOGGERS=console,file   (wandb, tensorboard, mlflow, ... by name)
#   PROMPTS= N= MINIBATCH= PROMPT_TOKENS= RESPONSE_TOKENS= DELTA= DELTA_B= W_MIN= BUDGET= LR=   Table 3
#   ATTN=auto              attention: flash_attention_2, or sdpa where it is not installed; or a name (docs/gpu.md)
#   SP= TP= TOKENS_PER_GPU= GPU_SHARE= OFFLOAD=none|states|all   memory; GPU_MEMORY_GB=80 is what the plan compares with
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/run_scripts/quote.sh"
die() { echo "train.sh: $*" >&2; exit 2; }
[[ -n ${NAME:-} ]] || die "start one of run_scripts/qwen3_*.sh, which say what to train"

mode=run
case ${1:-} in plan | config | overrides | run) mode=$1; shift ;; esac
[[ -n ${PYTHON:-} ]] ||
  for PYTHON in "${CPPO_VENV:-$root/.venv-gpu}/bin/python" "$root/.venv/bin/python" python3; do
    command -v "$PYTHON" >/dev/null && break
  done
recipe() { PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -m "recipe.$1" "${@:2}"; }
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

METHOD=${METHOD:-cppo}
[[ $METHOD == list ]] && { recipe methods; exit; }
export DELTA DELTA_B W_MIN BUDGET ESTIMATOR=${ESTIMATOR:-topk} FOLLOW=${FOLLOW:-paper}
method=$(recipe methods "$METHOD") || exit 2
METHOD_ARGS=()
while IFS= read -r line; do METHOD_ARGS+=("$line"); done <<<"$method"

SEED=${SEED:-0} NNODES=${NNODES:-1} NGPUS_PER_NODE=${NGPUS_PER_NODE:-8}
PROMPT_TOKENS=${PROMPT_TOKENS:-1024} LR=${LR:-1e-6} TEST_FREQ=${TEST_FREQ:-10} SAVE_FREQ=${SAVE_FREQ:-20}
LOGGERS=${LOGGERS:-console,file} DATA=${DATA:-$root/data}
REWARD_FILE=$(absolute "${REWARD_FILE:-$root/data_prep/math_reward.py}")
TRAIN_FILE=$(absolute "${TRAIN_FILE:-$DATA/train.parquet}")
[[ ! -d $MODEL_PATH ]] || MODEL_PATH=$(quote "$(absolute "$MODEL_PATH")") # else a hub id
RUN=${RUN:-${WORK:-$root/runs}/$NAME/$METHOD-seed$SEED}
case ",$LOGGERS," in *,file,*) ;; *) LOGGERS=$LOGGERS,file ;; esac # the report reads it
case $OFFLOAD in
  none) states=false all=false ;;
  states) states=true all=false ;; # parameters and AdamW's moments rest on the host while vLLM works
  all) states=false all=true ;;    # they and the gradients live there, and AdamW runs there
  *) die "OFFLOAD='$OFFLOAD' is not one of: none states all" ;;
esac
val_files=()
[[ -n ${VAL_FILES:-} ]] || for year in 24 25 26; do val_files+=("$(absolute "$DATA/aime$year.parquet")"); done
for file in ${VAL_FILES:-}; do val_files+=("$(absolute "$file")"); done
quoted=()
for file in "${val_files[@]}"; do quoted+=("$(quote "$file")"); done

DATA_ARGS=(
  data.train_files="$(quote "$TRAIN_FILE")"
  data.val_files="[$(IFS=,; echo "${quoted[*]}")]"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length="$PROMPT_TOKENS"
  data.max_response_length="$RESPONSE_TOKENS"
  data.filter_overlong_prompts=true
  data.filter_overlong_prompts_workers=null # in the trainer's own process
  data.seed="$SEED"
  reward.custom_reward_function.path="$(quote "$REWARD_FILE")" # verl's math_dapo scorer, bounded in time and memory
  reward.custom_reward_function.name=compute_score
)
attention=$(recipe checks "${ATTN:-auto}" "$SP")
MODEL_ARGS=(
  actor_rollout_ref.model.path="$MODEL_PATH"
  actor_rollout_ref.model.enable_gradient_checkpointing=true
  actor_rollout_ref.model.use_remove_padding=true # packed sequences
  ++actor_rollout_ref.model.override_config.attn_implementation="$attention"
)
ACTOR_ARGS=(
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr="$LR" # AdamW, constant
  actor_rollout_ref.actor.ppo_mini_batch_size="$MINIBATCH" # prompts an update
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$TOKENS_PER_GPU"
  actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size="$SP"
  actor_rollout_ref.actor.fsdp_config.param_offload="$states"
  actor_rollout_ref.actor.fsdp_config.optimizer_offload="$states"
  actor_rollout_ref.actor.fsdp_config.offload_policy="$all"
)
ROLLOUT_ARGS=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.temperature=1.0 # untruncated: top_p 1, top_k off
  actor_rollout_ref.rollout.top_p=1.0
  actor_rollout_ref.rollout.top_k=-1
  actor_rollout_ref.rollout.seed="$SEED"
  actor_rollout_ref.rollout.tensor_model_parallel_size="$TP"
  actor_rollout_ref.rollout.gpu_memory_utilization="$GPU_SHARE"
  actor_rollout_ref.rollout.max_model_len="$((PROMPT_TOKENS + RESPONSE_TOKENS))"
  actor_rollout_ref.rollout.val_kwargs.n="${VAL_N:-16}"
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
  actor_rollout_ref.rollout.val_kwargs.temperature=0.7
  actor_rollout_ref.rollout.val_kwargs.top_p=0.95
)
TRAINER_ARGS=(
  trainer.nnodes="$NNODES"
  trainer.n_gpus_per_node="$NGPUS_PER_NODE"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000 # the steps decide
  trainer.test_freq="$TEST_FREQ"
  trainer.save_freq="$SAVE_FREQ"
  trainer.max_actor_ckpt_to_keep=2
  trainer.logger="[$LOGGERS]"
  trainer.project_name="$NAME" # by these two the report knows the model, the method and the seed
  trainer.experiment_name="$METHOD-seed$SEED"
)
ALL=("${METHOD_ARGS[@]}" "${DATA_ARGS[@]}" "${MODEL_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAINER_ARGS[@]}" "$@")

case $mode in
  overrides) printf '%s\n' "${ALL[@]}"; exit ;;
  plan) recipe plan full "$NAME" "$METHOD" "${ALL[@]}"; exit ;;
  config) recipe plan config "$NAME" "$METHOD" "${ALL[@]}"; exit ;;
esac
for file in "$TRAIN_FILE" "${val_files[@]}"; do
  [[ -f $file ]] || die "no data at $file; run: python -m data_prep.math_data --out $DATA (or set DATA, TRAIN_FILE, VAL_FILES)"
done
export TENSORBOARD_DIR=${TENSORBOARD_DIR:-$RUN/tensorboard} WANDB_DIR=${WANDB_DIR:-$RUN}
recipe plan memory "$NAME" "$METHOD" "${ALL[@]}"
"$PYTHON" -m cppo_verl.cli.main run ${FRESH:+--fresh} "$RUN" "${ALL[@]}"
"$PYTHON" -m cppo_verl.cli.main report "$RUN"
