#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet that xpk makes
# (pip install xpk):
#   CLUSTER=mine TYPE=v5p-128 SLICES=2 launch/gke.sh distill \
#       --config=configs/... --workdir=/mnt/disk/run
#   launch/gke.sh --dry-run distill --config=... --workdir=...
# The cluster starts all pods again when one is preempted or fails, RESTARTS=10
# times, and not after bad input (2). The run goes on from --workdir: a volume
# of the cluster (STORAGE, made by `xpk storage`) that outlives the pods.
set -euo pipefail

CLUSTER=${CLUSTER:-specdiff}
PROJECT=${PROJECT:-}          # gcloud's own if empty
ZONE=${ZONE:-us-east5-a}
TYPE=${TYPE:-v5p-128}
SLICES=${SLICES:-1}
NAME=${NAME:-specdiff}        # of the workload
BASE=${BASE:-python:3.12}     # image that this repository is put on
STORAGE=${STORAGE:-}
RESTARTS=${RESTARTS:-10}
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=yes
  shift
fi

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"

# In the image there is no .venv: its Python is the project's own.
program=$(quoted python -m specdiff_jax "$@" --config.distributed=True)
flags=(
  --workload="$NAME" --cluster="$CLUSTER" --zone="$ZONE"
  --tpu-type="$TYPE" --num-slices="$SLICES"
  --base-docker-image="$BASE" --script-dir="$root"
  --max-restarts="$RESTARTS" --restart-on-exit-codes="1,$PREEMPTED"
  --termination-grace-period-seconds=300
  --command="pip install --quiet --editable '.[tpu]' && exec env MALLOC_ARENA_MAX=1 $program"
)
if [ -n "$PROJECT" ]; then
  flags+=(--project="$PROJECT")
fi
if [ -n "$STORAGE" ]; then
  flags+=(--storage="$STORAGE")
fi
EXEC=yes run xpk workload create "${flags[@]}"
