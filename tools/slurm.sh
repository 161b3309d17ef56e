#!/usr/bin/env bash
# Trains on GPUs under SLURM, one process per GPU; docs/pods.md has the rest.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 tools/slurm.sh CONFIG WORKDIR [FLAGS]
#
# WORKDIR lies where all nodes see it. Two minutes before the time is up SLURM sends SIGTERM to the
# processes; they save and end with 75, and the job goes back into the queue, as it does when it is
# preempted. Every other end is the last. Submit from the repository, with packages in .venv.
#SBATCH --job-name=meerkat
#SBATCH --output=meerkat-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
if (($# < 2)); then
    echo "error: give CONFIG and WORKDIR: sbatch ... tools/slurm.sh experiments/avfit.py:7b runs/7b" >&2
    exit 2
fi
config=$1 workdir=$2
shift 2
code=0
srun --kill-on-bad-exit=0 .venv/bin/python -m meerkat_jax.train \
    --config="$config" --workdir="$workdir" --resume "$@" || code=$?
if ((code == 75)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
