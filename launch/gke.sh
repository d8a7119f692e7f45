#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet that xpk makes
# (pip install xpk), in an image that holds this repository and all it needs:
#   IMAGE=us-docker.pkg.dev/my-project/my-repository/specdiff:1 BUILD=yes \
#       CLUSTER=mine TYPE=v5p-128 SLICES=2 launch/gke.sh distill \
#       --config=configs/... --workdir=/mnt/disk/run
#   IMAGE=... launch/gke.sh --dry-run distill --config=... --workdir=...
# The cluster starts all pods again when one is preempted (75) or fails, RESTARTS
# times, and not after bad input (2), what does not fit (3), or an image without
# this package. The run goes on from --workdir: a volume of the cluster, such as
# a bucket (STORAGE, made by `xpk storage attach --type=gcsfuse`), that outlives
# the pods. HF_TOKEN goes along, and can be read by who can read the JobSet.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
CLUSTER=${CLUSTER:-specdiff} # name of the cluster
PROJECT=${PROJECT:-}         # gcloud's own if empty
ZONE=${ZONE:-us-east5-a}     # where the cluster is
TYPE=${TYPE:-v5p-128}        # how many chips of which kind a slice has
SLICES=${SLICES:-1}          # how many slices
NAME=${NAME:-specdiff}       # of the workload
IMAGE=${IMAGE:-}             # in a registry that the cluster reads; needed
BUILD=${BUILD:-}             # yes: builds IMAGE by launch/Dockerfile, pushes it
STORAGE=${STORAGE:-}         # volume of the cluster
RESTARTS=${RESTARTS:-10}     # how often all pods are started again

# Says where IMAGE is in its registry, or why it is not.
look_up() {
  if command -v crane >/dev/null 2>&1; then
    crane digest "$IMAGE" 2>&1
  elif command -v docker >/dev/null 2>&1; then
    docker manifest inspect "$IMAGE" 2>&1
  elif command -v gcloud >/dev/null 2>&1; then
    gcloud artifacts docker images describe "$IMAGE" 2>&1
  else
    echo 'none of crane, docker and gcloud is on PATH'
    return 1
  fi
}

[ -n "$IMAGE" ] || fail 'IMAGE is empty; name an image in a registry that the' \
  'cluster reads, and have it built the first time:' \
  'IMAGE=us-docker.pkg.dev/PROJECT/REPOSITORY/specdiff:1 BUILD=yes.'
needs xpk 'pip install xpk'
no_addresses "mount the bucket as a volume of the cluster (STORAGE)" "$@"
if [ -n "$BUILD" ]; then
  needs docker 'install it, or build the image elsewhere and leave BUILD out'
  if ! run docker build --file "$root/launch/Dockerfile" --tag "$IMAGE" \
    "$root" || ! run docker push "$IMAGE"; then
    fail "the image $IMAGE could not be built and pushed (see above)."
  fi
elif [ -z "${DRY_RUN:-}" ]; then
  answer=$(look_up) || fail "the image $IMAGE cannot be found" \
    "(${answer##*$'\n'}); correct IMAGE, log in to its registry, or have it" \
    'built: BUILD=yes.'
fi

# xpk starts pods again after 127 and more, too: without Python there, say.
program=$(quoted python -m specdiff_jax "$@" --config.distributed=True)
export HF_TOKEN=${HF_TOKEN-} # launch/gke.env names it, so that xpk takes it
EXEC=yes run xpk workload create \
  --workload="$NAME" --cluster="$CLUSTER" --zone="$ZONE" \
  --tpu-type="$TYPE" --num-slices="$SLICES" \
  --docker-image="$IMAGE" --env-file="$root/launch/gke.env" \
  --max-restarts="$RESTARTS" --restart-on-exit-codes="1,$PREEMPTED" \
  --termination-grace-period-seconds=300 \
  --command="python -c 'import specdiff_jax' || exit 2; exec $program" \
  ${PROJECT:+--project="$PROJECT"} ${STORAGE:+--storage="$STORAGE"}
