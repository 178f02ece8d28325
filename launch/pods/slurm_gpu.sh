#!/usr/bin/env bash
# Trains on GPU nodes of a Slurm cluster: submits one job with a process a GPU. Two minutes before its time is over
# Slurm sends SIGTERM: the run saves and ends, and the same command goes on from there.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/pods/common.sh
source launch/pods/common.sh

: "${NAME:=ssmd}"                           # of the job
: "${NODES:=2}"
: "${GPUS:=8}"                              # of a node
: "${CPUS:=8}"                              # of a process, which feed its GPU
: "${TIME:=24:00:00}"
: "${PARTITION:=}"                          # empty: the cluster's default
: "${PYTHON:=.venv/bin/python}"             # with ".[cuda,formats]" installed, at the same place on every node
: "${CONFIG:=configs/openwebtext.py}"
: "${WORKDIR:=runs/openwebtext}"            # on a file system that all nodes share

usage() {
  cat <<TEXT
Usage: $0 [--dry_run] [--config.field=value ...]
Settings: NAME NODES GPUS CPUS TIME PARTITION PYTHON CONFIG WORKDIR.
TEXT
}

parse "$@"
partition=()
[[ -n "$PARTITION" ]] && partition=(--partition="$PARTITION")
# Addresses and ranks come from Slurm. A process that dies takes the others with it instead of leaving them waiting.
step="$(quoted srun --kill-on-bad-exit=1 --cpus-per-task="$CPUS" "$PYTHON" -m launch.train --config="$CONFIG" --workdir="$WORKDIR" \
  --config.model.attention=cudnn --distributed "${EXTRA[@]}")"
run sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
  --cpus-per-task="$CPUS" --time="$TIME" --signal=TERM@120 --requeue "${partition[@]}" --wrap="$step"
