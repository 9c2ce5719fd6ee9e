#!/usr/bin/env bash
# Several processes of this machine as one launch, to see what a pod will do before there is one:
#
#   experiments/launch/local.sh 2 --config configs/smoke.py --workdir runs/two
#
# Each has DEVICES CPU devices (2 unless set). Ends when all have ended, with the largest of their exit codes; a SIGTERM
# or SIGINT to this script reaches all of them.
set -uo pipefail
count=$1
shift
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${DEVICES:-2}" JAX_NUM_PROCESSES="$count"
export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-$((20000 + RANDOM % 20000))}"
processes=()
trap 'kill -TERM "${processes[@]}" 2> /dev/null' TERM INT
for ((i = 0; i < count; i++)); do
  JAX_PROCESS_ID=$i "${PYTHON:-python}" -m vlm_jax.train "$@" &
  processes+=($!)
done
largest=0
for process in "${processes[@]}"; do
  while true; do
    wait "$process"
    code=$?
    ((code > 128)) && kill -0 "$process" 2> /dev/null || break # a signal to this script ends `wait`, not the process
  done
  ((code > largest)) && largest=$code
done
exit "$largest"
