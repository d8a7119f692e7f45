#!/usr/bin/env bash
# Trains on a TPU VM, of one host or of many, from a machine with gcloud:
#   TPU=mine TYPE=v5p-128 launch/tpu_vm.sh distill --config=configs/... \
#       --workdir=/mnt/disk/run
#   launch/tpu_vm.sh --dry-run distill --config=... --workdir=...
# Makes the VM if there is none, copies this repository to it, and runs. A VM
# that was taken away is made anew, and the run goes on from --workdir: on a
# disk that all hosts share and that outlives them, which SETUP can mount.
set -euo pipefail

TPU=${TPU:-specdiff}
TYPE=${TYPE:-v5p-8}
ZONE=${ZONE:-us-east5-a}
VERSION=${VERSION:-v2-alpha-tpuv5} # of the VM's software; goes with TYPE
CREATE=${CREATE:---spot}           # more flags of `create`, such as --network
SETUP=${SETUP:-sudo apt-get -qq install -y python3.11-venv}
RESTARTS=${RESTARTS:-3}
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=yes
  shift
fi

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
gcloud=(gcloud compute tpus tpu-vm)
flags=(--zone="$ZONE" --quiet)
state() {
  [ -n "${DRY_RUN:-}" ] || "${gcloud[@]}" describe "$TPU" "${flags[@]}" \
    --format='value(state)' 2>/dev/null || true
}
on_all() { run "${gcloud[@]}" ssh "$TPU" --worker=all --command="$1" "${flags[@]}"; }
prepare() {
  if [ "$(state)" = PREEMPTED ]; then
    run "${gcloud[@]}" delete "$TPU" "${flags[@]}" || return
  fi
  if [ "$(state)" != READY ]; then
    # shellcheck disable=SC2086 # several flags
    run "${gcloud[@]}" create "$TPU" --accelerator-type="$TYPE" \
      --version="$VERSION" $CREATE "${flags[@]}" || return
  fi
  on_all "mkdir -p specdiff && $SETUP" &&
    run "${gcloud[@]}" scp --recurse --worker=all \
      "$root"/{LICENSE,README.md,setup.cfg,pyproject.toml} \
      "$root"/{specdiff_jax,configs,launch} "$TPU:specdiff/" "${flags[@]}"
}

program="cd specdiff && REQUIREMENT='.[tpu]' launch/local.sh"
restarted=0
while :; do
  code=0
  prepare && on_all "$program $(quoted "$@" --config.distributed=True)" || code=$?
  if [ "$code" != 0 ] && [ "$(state)" = PREEMPTED ]; then code=$PREEMPTED; fi
  goes_on "$code" "$restarted" || exit "$code"
  restarted=$((restarted + 1))
  echo "It ended with exit code $code; starting it again ($restarted) ..." >&2
  sleep "${RESTART_DELAY:-60}"
done
