#!/usr/bin/env bash
# Trains on two hosts (or more) that can reach each other, with no cluster software: starts one process on each by ssh
# and waits. When one ends badly the others are stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=launch/pods/common.sh
source launch/pods/common.sh

: "${HOSTS:=}"                              # names or addresses, by spaces; the first coordinates
: "${PORT:=8476}"                           # of the first host, reachable from the others
: "${DIRECTORY:=$PWD}"                      # this code, at the same place on every host
: "${PYTHON:=.venv/bin/python}"
: "${CONFIG:=configs/openwebtext.py}"
: "${WORKDIR:=runs/openwebtext}"            # on a file system that all hosts share

usage() {
  cat <<TEXT
Usage: HOSTS="host0 host1" $0 [--dry_run] [--config.field=value ...]
Settings: HOSTS PORT DIRECTORY PYTHON CONFIG WORKDIR.
TEXT
}

parse "$@"
need HOSTS
read -ra hosts <<<"$HOSTS"

processes=()
stop() {
  # With -tt the remote process ends with its ssh. It does not save: the same command goes on from the last checkpoint.
  for process in "${processes[@]}"; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
}
trap stop EXIT

for index in "${!hosts[@]}"; do
  train="$(quoted "$PYTHON" -m launch.train --config="$CONFIG" --workdir="$WORKDIR" --distributed \
    --coordinator="${hosts[0]}:$PORT" --num_processes="${#hosts[@]}" --process_id="$index" "${EXTRA[@]}")"
  command=(ssh -tt "${hosts[$index]}" "cd $(quoted "$DIRECTORY") && $train")
  quoted "${command[@]}"
  if [[ "$DRY_RUN" == false ]]; then
    "${command[@]}" </dev/null &
    processes+=("$!")
  fi
done
for _ in "${processes[@]}"; do
  wait -n
done
