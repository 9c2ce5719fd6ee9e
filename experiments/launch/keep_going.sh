#!/usr/bin/env bash
# The training verb on one host of a launch, started again until it is finished or was given something wrong:
#
#   experiments/launch/keep_going.sh --config configs/quickstart.py --workdir gs://bucket/run
#
# 75 means that it was asked to stop and has saved; any other code but 0 and 2, that a process or a host was lost. When
# one process ends so do the others, and all meet again here. ATTEMPTS (100 unless set) bounds how often.
set -uo pipefail
for ((attempt = 1; attempt <= ${ATTEMPTS:-100}; attempt++)); do
  "${PYTHON:-python}" -m vlm_jax.train "$@"
  code=$?
  if ((code == 0 || code == 2)); then
    exit "$code"
  fi
  echo "ended with $code, attempt $attempt; the same command goes on" >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
