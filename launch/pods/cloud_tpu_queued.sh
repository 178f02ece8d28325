#!/usr/bin/env bash
# Trains on a Cloud TPU slice that is asked for as a queued resource: waits until Google grants it, installs the code on
# every host, starts the same command on all of them, and gives the slice back.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/pods/common.sh
source launch/pods/common.sh

: "${NAME:=ssmd}"                                # of the queued resource and of its slice
: "${PROJECT:=}"                                 # Google Cloud project
: "${ZONE:=us-west4-a}"                          # where the quota is
: "${ACCELERATOR_TYPE:=v5litepod-16}"            # v5litepod-16 is v5e:4x4, v6e-64 is v6e:8x8, v5p-256 is v5p:4x4x8
: "${RUNTIME_VERSION:=v2-alpha-tpuv5-lite}"      # v2-alpha-tpuv6e, v2-alpha-tpuv5; it needs Python 3.11
: "${SPOT:=false}"                               # true: cheaper, may be taken away; the same command goes on
: "${REPOSITORY:=}"                              # git URL of this code, readable from the hosts
: "${CONFIG:=configs/openwebtext.py}"
: "${WORKDIR:=/mnt/runs/openwebtext}"            # on a file system that all hosts have mounted
: "${KEEP:=false}"                               # true: leave the slice standing (and paid for) at the end

usage() {
  cat <<TEXT
Usage: PROJECT=my-project REPOSITORY=https://... $0 [--dry_run] [--config.field=value ...]
Settings: NAME PROJECT ZONE ACCELERATOR_TYPE RUNTIME_VERSION SPOT REPOSITORY CONFIG WORKDIR KEEP.
Ask first whether it fits: python -m launch.compile_check --config=\$CONFIG --topology=v5e:4x4
TEXT
}

parse "$@"
need PROJECT REPOSITORY
where=(--project="$PROJECT" --zone="$ZONE")
spot=()
[[ "$SPOT" == true ]] && spot=(--spot)

give_back() {
  if [[ "$KEEP" == false ]]; then
    run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
  fi
}

run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
  --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${spot[@]}"
# Whatever happens from here on, nothing is left that costs money.
trap give_back EXIT

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
}
if [[ "$DRY_RUN" == false ]]; then
  until [[ "$(state)" == ACTIVE ]]; do
    case "$(state)" in
      FAILED | SUSPENDED)
        echo "error: the queued resource $NAME is $(state)" >&2
        exit 1
        ;;
    esac
    sleep 60
  done
fi

on_all_hosts() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}
on_all_hosts "$(quoted git clone --depth=1 "$REPOSITORY" ssmd_jax) && cd ssmd_jax && pip install -e '.[tpu,formats]'"
# Addresses and ranks come from the slice itself.
train="$(quoted python3 -m launch.train --config="$CONFIG" --workdir="$WORKDIR" --distributed "${EXTRA[@]}")"
on_all_hosts "cd ssmd_jax && $train"
