#!/usr/bin/env bash
# Joins this machine to a Ray cluster for a run on several nodes, and waits until it is whole.
#
#   on the first node   NNODES=2 HEAD=10.0.0.1 bash run_scripts/start_ray.sh head
#   on the others       NNODES=2 HEAD=10.0.0.1 bash run_scripts/start_ray.sh worker
#   on the first        export RAY_ADDRESS=10.0.0.1:6379 RAY_AUTH_MODE=token
#                       NNODES=2 bash run_scripts/qwen3_30b_a3b_base.sh
#   on each, at the end bash run_scripts/start_ray.sh stop
#
#   HEAD=        address of the first node, as the others reach it      RAY_PORT=6379
#   NNODES=1 NGPUS_PER_NODE=8     what must be there          WAIT=600   seconds to wait for it
#   STATE=runs/ray                folder for Ray's log and process id (one a node)
#   RAY_AUTH_TOKEN= or ~/.ray/auth_token   the cluster's password: made on the first node, the same on all
# Start it in the environment of the run, with the variables the workers need (VERL_PLATFORM, NCCL_*, ...): workers
# inherit them from here.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
die() { echo "start_ray.sh: $*" >&2; exit 1; }
command -v ps >/dev/null || die "no ps on this machine; install procps"
role=${1:-}
NNODES=${NNODES:-1} NGPUS_PER_NODE=${NGPUS_PER_NODE:-8} RAY_PORT=${RAY_PORT:-6379} WAIT=${WAIT:-600}
STATE=${STATE:-$root/runs/ray}
pid_file=$STATE/pid log=$STATE/ray.log
[[ -n ${PYTHON:-} ]] ||
  for PYTHON in "${CPPO_VENV:-$root/.venv-gpu}/bin/python" "$root/.venv/bin/python" python3; do
    command -v "$PYTHON" >/dev/null && break
  done
alive() { ps -eo pgid=,stat= | awk -v group="$1" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'; }
gone() { # waits up to $2 seconds for process group $1 to end; a killed process holds its place for a moment
  local tries
  for ((tries = 0; tries < $2 * 10; tries++)); do alive "$1" || return 0; sleep 0.1; done
  return 1
}
running() { [[ -f $pid_file ]] && alive "$(cat "$pid_file")"; }
# Ray's own note of a running cluster, which later runs on this machine would join
current=${RAY_TMPDIR:-/tmp}/ray/ray_current_cluster
stop() { # Ray and all it started here form one process group
  [[ ! -f $current || $(cat "$current") != *":$(cat "$STATE/port" 2>/dev/null)" ]] || rm -f "$current"
  running || { rm -f "$pid_file"; return 0; }
  local group
  group=$(cat "$pid_file")
  kill -TERM -- "-$group" 2>/dev/null || true
  if ! gone "$group" 10; then
    kill -KILL -- "-$group" 2>/dev/null || true
    gone "$group" 30 || die "process group $group is still there after SIGKILL (waiting for a device or a disk?)"
  fi
  rm -f "$pid_file"
}
fail() { stop; die "$@"; }

case $role in
  stop) stop; exit ;;
  head | worker) ;;
  *) die "'$role' is not one of: head worker stop" ;;
esac
[[ -n ${HEAD:-} ]] || die "HEAD is not set: the address of the first node, as the others reach it"
running && die "Ray runs here already (process group $(cat "$pid_file")); 'start_ray.sh stop' ends it"
[[ $role != head || $PYTHON != *" "* ]] ||
  die "Ray's head node cannot start from a path with a blank, $PYTHON: make the environment elsewhere (CPPO_VENV)"
"$PYTHON" -c "import ray" 2>/dev/null || die "no Ray in $PYTHON; set PYTHON or CPPO_VENV to the run's environment"
mkdir -p "$STATE"

# Who reaches the port may run code: every connection needs the token.
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
ray() { "$PYTHON" -m ray.scripts.scripts "$@"; }
if [[ $RAY_AUTH_MODE == token ]] && ! ray get-auth-token >/dev/null 2>&1; then
  [[ $role == head ]] || die "no token here: copy ~/.ray/auth_token from the first node, or set RAY_AUTH_TOKEN as there"
  (umask 077 && ray get-auth-token --generate >/dev/null 2>&1) || # Ray would leave it readable to all
    die "this Ray knows no tokens; RAY_AUTH_MODE=disabled on all nodes goes on without, on a network you trust"
fi

start=("$PYTHON" -m ray.scripts.scripts start --block --num-gpus="$NGPUS_PER_NODE" --disable-usage-stats)
[[ -z ${NUM_CPUS:-} ]] || start+=(--num-cpus="$NUM_CPUS")
if [[ $role == head ]]; then
  start+=(--head --node-ip-address="$HEAD" --port="$RAY_PORT" --include-dashboard=false)
else
  start+=(--address="$HEAD:$RAY_PORT")
fi
set -m # a process group of its own
"${start[@]}" >"$log" 2>&1 </dev/null &
echo $! >"$pid_file"
echo "$RAY_PORT" >"$STATE/port"
disown
set +m

wanted=$((NNODES * NGPUS_PER_NODE)) begun=$SECONDS seen=0
count() { # GPUs in the cluster; 0 while it cannot be reached
  timeout 5 bash -c "exec 3<>/dev/tcp/$HEAD/$RAY_PORT" 2>/dev/null || { echo 0; return; }
  timeout 60 "$PYTHON" - "$HEAD:$RAY_PORT" 2>>"$log" <<'PY' || echo 0
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(int(ray.cluster_resources().get("GPU", 0)))
PY
}
while ((SECONDS - begun < WAIT)); do
  running || fail "Ray ended on this node: $(tail -n 5 "$log")"
  seen=$(count)
  if ((seen >= wanted)); then
    echo "$seen GPUs in the cluster at $HEAD:$RAY_PORT"
    [[ $role == worker ]] || echo "export RAY_ADDRESS=$HEAD:$RAY_PORT RAY_AUTH_MODE=$RAY_AUTH_MODE"
    exit 0
  fi
  sleep 3 # a look costs a start of Python and Ray
done
fail "$seen of $wanted GPUs ($NNODES nodes x $NGPUS_PER_NODE) joined $HEAD:$RAY_PORT within $WAIT s. Is HEAD right and port \
$RAY_PORT open between the nodes? Ray's log: $log"
