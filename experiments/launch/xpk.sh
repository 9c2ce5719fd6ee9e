#!/usr/bin/env bash
# One or several TPU slices of a GKE cluster that XPK made: it writes the JobSet and packs this folder into the image.
#
#   experiments/launch/xpk.sh CLUSTER NAME v5litepod-64 2 --config configs/quickstart.py --workdir gs://bucket/run
#
# 2 is the number of slices; config.mesh.data must be a multiple of it. IMAGE is an image that has the requirements.
set -euo pipefail
cluster=$1 name=$2 type=$3 slices=$4
shift 4
xpk workload create --cluster="$cluster" --workload="$name" --tpu-type="$type" --num-slices="$slices" \
  --base-docker-image="$IMAGE" --script-dir=. --max-restarts=100 --restart-on-exit-codes=1,75 \
  --termination-grace-period-seconds=300 --command="python -m vlm_jax.train$(printf ' %q' "$@")"
