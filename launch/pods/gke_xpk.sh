#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that XPK made (pip install xpk): submits one workload, which Kubernetes starts
# on every host and restarts when it is preempted: the run then leaves with status 143, which is no success to it.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/pods/common.sh
source launch/pods/common.sh

: "${NAME:=ssmd}"                          # of the workload
: "${PROJECT:=}"                           # Google Cloud project
: "${ZONE:=us-west4-a}"                    # of the cluster
: "${CLUSTER:=}"                           # made by `xpk cluster create`
: "${TPU_TYPE:=v5litepod-16}"              # of a slice
: "${NUM_SLICES:=1}"                       # slices, joined by the data centre's network
: "${IMAGE:=}"                             # Docker image with this code in its working directory and ".[tpu,formats]"
: "${MAX_RESTARTS:=10}"                    # each goes on from the last checkpoint
: "${CONFIG:=configs/openwebtext.py}"
: "${WORKDIR:=/mnt/runs/openwebtext}"      # on a volume that all pods mount

usage() {
  cat <<TEXT
Usage: PROJECT=my-project CLUSTER=my-cluster IMAGE=gcr.io/... $0 [--dry_run] [--config.field=value ...]
Settings: NAME PROJECT ZONE CLUSTER TPU_TYPE NUM_SLICES IMAGE MAX_RESTARTS CONFIG WORKDIR.
TEXT
}

parse "$@"
need PROJECT CLUSTER IMAGE
# Addresses and ranks come from Kubernetes.
command="$(quoted python3 -m launch.train --config="$CONFIG" --workdir="$WORKDIR" --distributed \
  --preempted_status=143 "${EXTRA[@]}")"
run xpk workload create --workload="$NAME" --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
  --tpu-type="$TPU_TYPE" --num-slices="$NUM_SLICES" --docker-image="$IMAGE" --max-restarts="$MAX_RESTARTS" \
  --command="$command"
