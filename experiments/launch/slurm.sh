#!/usr/bin/env bash
#SBATCH --job-name=vlm_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# A Slurm cluster of GPU nodes, a process for each GPU; JAX finds the others through what srun says. From this folder:
#
#   sbatch experiments/launch/slurm.sh --config configs/quickstart.py --workdir /shared/run
#
# All GPUs of a node stay visible to its tasks (no --gpus-per-task): JAX gives each task the one of its number. Five
# minutes before its time is over the job is told, saves, and goes back into the queue.
set -uo pipefail
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m vlm_jax.train "$@"
code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
