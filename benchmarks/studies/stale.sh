#!/usr/bin/env bash
# The study of stale data on the real stack, fixed before any of its runs: what is run, and how it is read. About 2.5 hours
# of two cores; started again, it goes on where it was stopped.
#
# Question: does what the pocket bench says of stale data (docs/evidence.md) show where verl's own asynchronous trainer
# makes the staleness, and what does asynchrony save?
#
# How it is read. Accuracy is of sampled responses at temperature 1; standard errors over questions.
#   learned    For each run: validation after the last step minus validation before the first. The bar for cppo-ahead1, 30
#              points on each of the 3 seeds, is met or not.
#   pairs      The arms of one rule and anchor against each other by batches ahead, of one rule by anchor, and the two rules
#              at each setting, 13 in all: difference of the last validation accuracies, paired by seed, with a t interval
#              at 95% (2 degrees of freedom). "Suggests" is said where the interval leaves out 0, with the reminder that of
#              13 such intervals one leaves it out by chance in about half of all studies; "does not differ" is never said.
#   staleness  Mean over steps of training/off_policy/trajectory_staleness_worst/mean, and the masked share, for each arm.
#              Where less than 1% of the tokens are masked the study says nothing of the rule, whatever the accuracies.
#   time       Median seconds a step of the arms of one seed that were run one after another on an idle machine; 128
#              responses over that is the throughput. Runs that shared the machine are left out of this and said.
#   stopping   No run is added, lengthened or left out after a look. A run that fails is resumed; one that cannot be
#              finished is reported as missing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
study=${WORK:-$root/runs}/study-stale
# 128 responses a step; 128 validation questions, 2 samples
export STEPS=60 PROMPTS=16 LR=2e-4 DECAY=constant TEST_FREQ=10 SAVE_FREQ=20

arm() { # NAME METHOD MODE OVERRIDE...
  local run=$study/$1-seed$SEED
  [[ -e $run/report/report.html ]] ||
    METHOD=$2 MODE=$3 SEED=$SEED RUN=$run bash "$root/run_scripts/quickstart.sh" "${@:4}"
}
ahead=trainer.v1.colocate_async.num_warmup_batches # batches that are sampled ahead
proximal=actor_rollout_ref.actor.policy_loss.anchor=proximal
for SEED in 0 1 2; do # each with its own data, model and run; the arms of a seed share data and model
  for rule in cppo dppo; do
    method=${rule/dppo/dppo_tv}
    arm "$rule-sync" "$method" sync # both anchors are the same policy there
    for batches in 1 4; do
      arm "$rule-ahead$batches" "$method" colocate_async "$ahead=$batches"
      arm "$rule-ahead$batches-proximal" "$method" colocate_async "$ahead=$batches" "$proximal"
    done
  done
done
venv=$("$root/run_scripts/setup_env.sh")
"$venv/bin/cppo-verl" report "$study"
