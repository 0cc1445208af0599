#!/usr/bin/env bash
# The body of run_scripts/quickstart.sh and run_scripts/real_model.sh, which set what differs and then source this file:
# environment, a look at the settings, data and model, verl's own trainer on the CPU platform, report.
#
#   NAME                    of the run                      TITLE    its part of RUN's name (NAME)
#   EXTRA                   what setup_env.sh installs besides (nothing)
#   prepare                 a function that makes what follows; $python and $venv are set in it
#   DATA, MODEL             folder of train.parquet and val.parquet; folder of the model
#   REWARD                  file with compute_score
#   PROMPTS N MINIBATCH     prompts a step, responses each, prompts an update
#   PROMPT_TOKENS RESPONSE_TOKENS MODEL_LENGTH   most tokens of each, and of both together
#   LR TEST_FREQ SAVE_FREQ VAL_N                 learning rate; steps between validations, checkpoints; samples a row
#   PACK                    tokens of a packed row: sdpa masks its sequences from each other, so time goes with its square
#   THREADS                 of each process (1)
#   EXTRA_ARGS              an array of further Hydra overrides
# and the variables that the head of quickstart.sh explains.
[[ -n ${NAME:-} ]] || { echo "cpu_run.sh: start quickstart.sh or real_model.sh, which say what to train" >&2; exit 2; }
RUN=${RUN:-$WORK/${TITLE:-$NAME}-$METHOD${MODE:+-$MODE}-seed$SEED-ranks$RANKS}

venv=$(CPPO_EXTRA=${EXTRA:-} "$root/run_scripts/setup_env.sh")
python=$venv/bin/python
export VERL_PLATFORM=cpu OMP_NUM_THREADS=${THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false RAY_DEDUP_LOGS=0
cd "$root"
source "$root/run_scripts/quote.sh"

[[ -z ${MODE:-} ]] || set -- "trainer.v1.trust_region.mode=$MODE" "$@"
"$venv/bin/cppo-verl" run --glance "$RUN" "+trust_region=$METHOD" "$@"
prepare

DATA_ARGS=(
  data.train_files="$(quote "$DATA/train.parquet")"
  data.val_files="$(quote "$DATA/val.parquet")"
  data.train_batch_size="$PROMPTS"
  data.max_prompt_length="$PROMPT_TOKENS"
  data.max_response_length="$RESPONSE_TOKENS"
  data.filter_overlong_prompts=false
  data.seed="$SEED"
  reward.custom_reward_function.path="$(quote "$REWARD")"
  reward.custom_reward_function.name=compute_score
)
ACTOR_ARGS=(
  actor_rollout_ref.model.path="$(quote "$MODEL")"
  actor_rollout_ref.actor.optim.lr="$LR"
  actor_rollout_ref.actor.ppo_mini_batch_size="$MINIBATCH" # prompts an update
  actor_rollout_ref.actor.use_dynamic_bsz=true
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu="$PACK"
)
ROLLOUT_ARGS=(
  actor_rollout_ref.rollout.n="$N"
  actor_rollout_ref.rollout.max_model_len="$MODEL_LENGTH"
  actor_rollout_ref.rollout.seed="$SEED"
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu="$((2 * PACK))"
  actor_rollout_ref.rollout.val_kwargs.n="$VAL_N"
  actor_rollout_ref.rollout.val_kwargs.do_sample=true
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
)
TRAINER_ARGS=(
  trainer.n_gpus_per_node="$RANKS"
  trainer.total_training_steps="$STEPS"
  trainer.total_epochs=1000
  trainer.test_freq="$TEST_FREQ"
  trainer.save_freq="$SAVE_FREQ"
  trainer.max_actor_ckpt_to_keep=2
  trainer.v1.trust_region.record=8 # responses a step, with every token's numbers: docs/inspecting.md
  trainer.logger='["console","file"]'
  trainer.validation_data_dir="$(quote "$RUN/validations")" # every response of every validation, as text
  trainer.project_name="$NAME"
  trainer.experiment_name="$METHOD"
)
"$venv/bin/cppo-verl" run ${FRESH:+--fresh} "$RUN" "+trust_region=$METHOD" +platform=cpu \
  "${DATA_ARGS[@]}" "${ACTOR_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${TRAINER_ARGS[@]}" ${EXTRA_ARGS[@]+"${EXTRA_ARGS[@]}"} "$@"
"$venv/bin/cppo-verl" report "$RUN"
