#!/bin/sh
# Slurm: each task of an array runs a shard; a task that loses its node is queued again.
#   sbatch --array=1-8 cluster/slurm.sh
# Afterwards: kmlab merge results
#SBATCH --job-name=kmlab
#SBATCH --requeue
#SBATCH --open-mode=append
set -eu
mkdir -p results
exec kmlab test --shard auto --report "results/$SLURM_ARRAY_TASK_ID.json" --report "results/$SLURM_ARRAY_TASK_ID.jsonl" "$@"
