#!/usr/bin/env bash
# A TPU VM, of one host or a whole slice: the same command on every host, which find each other by themselves.
#
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
#   experiments/launch/tpu_vm.sh install NAME ZONE
#   experiments/launch/tpu_vm.sh train NAME ZONE --config configs/quickstart.py --workdir gs://bucket/run
#
# The workdir must be one that all hosts see. Paths of configs are those of this folder, which `install` copies.
set -euo pipefail
step=$1 name=$2 zone=$3
shift 3
on_every_host() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}
case $step in
  install)
    gcloud compute tpus tpu-vm scp --recurse . "$name":vlm_jax --zone="$zone" --worker=all
    on_every_host 'cd vlm_jax && make install EXTRAS=tpu'
    ;;
  train)
    on_every_host "cd vlm_jax && PYTHON=.venv/bin/python bash experiments/launch/keep_going.sh$(printf ' %q' "$@")"
    ;;
  *)
    echo "the first word is install or train, not $step" >&2
    exit 2
    ;;
esac
