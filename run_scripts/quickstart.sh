#!/usr/bin/env bash
# The main job: verl's own trainer (Ray, FSDP2, vLLM) teaches a tiny Qwen3 multi-step arithmetic with a trust region,
# on a machine with nothing but Python 3.11. Makes its environment, data and model, trains, and writes a report.
#
#   METHOD=cppo   any preset: cppo cppo_soft cppo_kl dppo_tv dppo_kl ...
#   MODE=sync     which of verl's trainers: sync colocate_async (docs/staleness.md)
#   STEPS=60      training steps          SEED=0    of data, model and run      RANKS=1   data-parallel ranks
#   RUN=runs/...  run directory; started again, the same command resumes there (FRESH=1 starts over)
# Further arguments are Hydra overrides for verl: run_scripts/quickstart.sh actor_rollout_ref.actor.optim.lr=1e-4
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
METHOD=${METHOD:-cppo} STEPS=${STEPS:-60} SEED=${SEED:-0} RANKS=${RANKS:-1}
WORK=${WORK:-$root/runs}
RUN=${RUN:-$WORK/quickstart-$METHOD${MODE:+-$MODE}-seed$SEED-ranks$RANKS}
DATA=$WORK/arithmetic-seed$SEED
MODEL=$WORK/tiny-qwen3-seed$SEED

venv=$("$root/run_scripts/setup_env.sh")
python=$venv/bin/python
# One thread a process: trainer, rollout engine and Ray share two cores.
export VERL_PLATFORM=cpu OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false RAY_DEDUP_LOGS=0
cd "$root"

[[ -z ${MODE:-} ]] || set -- "trainer.v1.trust_region.mode=$MODE" "$@"
"$venv/bin/cppo-verl" run --check "$RUN" "+trust_region=$METHOD" "$@"
"$python" -m data_prep.arithmetic --out "$DATA" --seed "$SEED"
OMP_NUM_THREADS=2 "$python" -m data_prep.tiny_qwen3 --data "$DATA" --out "$MODEL" --seed "$SEED"

DATA_ARGS=(
  data.train_files="$DATA/train.parquet"
  data.val_files="$DATA/val.parquet"
  data.train_batch_size=16
  data.max_prompt_length=48
  data.max_response_length=64
  data.filter_overlong_prompts=false
  data.seed="$SEED"
  reward.custom_reward_function.path="$root/data_prep/arithmetic_reward.py"
  reward.custom_reward_function.name=compute_score
)
ACTOR_ARGS=(
  actor_rollout_ref.model.path="$MODEL"
  actor_rollout_ref.actor.optim.lr=2e-4
  actor_rollout_ref.actor.ppo_mini_batch_size=4 # prompts an update: 4 updates a rollout batch
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024 # sdpa masks packed sequences from each other: tokens squared
)
ROLLOUT_ARGS=(
  actor_rollout_ref.rollout.n=8
  actor_rollout_ref.rollout.max_model_len=128
  actor_rollout_ref.rollout.seed="$SEED"
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=2048
  actor_rollout_ref.rollout.val_kwargs.n=2
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
)
TRAINER_ARGS=(
  trainer.n_gpus_per_node="$RANKS"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq=10
  trainer.save_freq=20
  trainer.max_actor_ckpt_to_keep=2
  trainer.v1.trust_region.record=8 # responses a step, with every token's numbers: docs/inspecting.md
  trainer.logger='["console","file"]'
  trainer.project_name=quickstart
  trainer.experiment_name="$METHOD"
)
"$venv/bin/cppo-verl" run ${FRESH:+--fresh} "$RUN" "+trust_region=$METHOD" +platform=cpu \
  "${DATA_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAINER_ARGS[@]}" "$@"
"$venv/bin/cppo-verl" report "$RUN"
