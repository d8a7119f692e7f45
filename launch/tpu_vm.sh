#!/usr/bin/env bash
# Trains on a TPU VM, of one host or of many, from a machine with gcloud:
#   TPU=mine TYPE=v5p-128 BUCKET=my-bucket launch/tpu_vm.sh distill \
#       --config=configs/... --workdir=/mnt/bucket/run
#   launch/tpu_vm.sh --dry-run distill --config=... --workdir=...
#   launch/tpu_vm.sh --follow    the log of the run that is going there
#   launch/tpu_vm.sh --stop      has it save its state and end
# Asks for a queued resource, waits until it is granted, copies this repository
# and HF_TOKEN to its hosts, starts the run there, detached, and follows its log.
# Ctrl-C or a lost connection leaves the run going; the same command follows it
# again. A TPU that was taken away is asked for anew, and the run goes on from
# --workdir: in a bucket, which outlives the hosts and which all of them share.
# The TPU stays yours, and costs, until you give it back:
#   gcloud compute tpus queued-resources delete mine --force
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
TPU=${TPU:-specdiff}         # name of the queued resource, and of its node
TYPE=${TYPE:-v5p-8}          # how many chips of which kind
PROJECT=${PROJECT:-}         # gcloud's own if empty
ZONE=${ZONE:-us-east5-a}     # where that kind is
VERSION=${VERSION:-v2-alpha-tpuv5} # of the VM's software; goes with TYPE
CREATE=${CREATE:---spot}     # more flags of `create`: --reserved, --network=...
BUCKET=${BUCKET:-}           # is mounted at MOUNT on all hosts
MOUNT=${MOUNT:-/mnt/bucket}  # where
SETUP=${SETUP:-sudo apt-get -qq install -y python3.11-venv} # run on each host
RESTARTS=${RESTARTS:-3}      # how often a run that failed is started again
BUCKET=${BUCKET#gs://}

flags=(--zone="$ZONE" --quiet ${PROJECT:+--project="$PROJECT"})
queue() { run gcloud compute tpus queued-resources "$@" "${flags[@]}"; }
on_all() {
  run gcloud compute tpus tpu-vm ssh "$TPU" --worker=all --command="$1" \
    "${flags[@]}"
}
copy() { # FILE... FOLDER
  run gcloud compute tpus tpu-vm scp --recurse --worker=all "${@:1:$#-1}" \
    "$TPU:${*: -1}" "${flags[@]}"
}
detached() { on_all "specdiff/launch/detached.sh $1"; }
state() {
  [ -n "${DRY_RUN:-}" ] ||
    queue describe "$TPU" --format='value(state.state)' 2>/dev/null || true
}

# Waits for the queued resource, which it asks for where there is none.
obtain() {
  local now asked=
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in
      ACCEPTED | CREATING | WAITING_FOR_RESOURCES | PROVISIONING | \
        SUSPENDING | DELETING)
        echo "The TPU $TPU: $now ..." >&2
        ;;
      *)
        if [ -n "$asked" ]; then
          echo "The TPU $TPU was not granted: ${now:-it is not there}." >&2
          return 1
        fi
        asked=yes
        [ -z "$now" ] || queue delete "$TPU" --force || return
        # shellcheck disable=SC2086 # several flags
        queue create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" \
          --runtime-version="$VERSION" $CREATE || return
        [ -z "${DRY_RUN:-}" ] || return 0
        ;;
    esac
    sleep "${POLL_DELAY:-30}"
  done
}

# HF_TOKEN travels as the file where libraries look for it: others on the
# machine can read command lines.
pass_token() {
  local code=0 file='(HF_TOKEN)'
  [ -n "${HF_TOKEN:-}" ] || return 0
  if [ -z "${DRY_RUN:-}" ]; then
    file=$(mktemp) && printf '%s' "$HF_TOKEN" >"$file"
  fi
  copy "$file" .cache/huggingface/token || code=$?
  rm -f -- "$file"
  return "$code"
}

prepare() {
  obtain &&
    on_all "mkdir -p specdiff .cache/huggingface && $SETUP" &&
    copy "$root"/{LICENSE,README.md,setup.cfg,pyproject.toml} \
      "$root"/{specdiff_jax,configs,launch} specdiff/ &&
    pass_token || return
  [ -z "$BUCKET" ] ||
    on_all "specdiff/launch/mount_bucket.sh $(quoted "$BUCKET" "$MOUNT")"
}

needs gcloud 'install the Google Cloud CLI'
no_addresses "BUCKET=... mounts a bucket, at $MOUNT" "$@"
if [ -z "${DRY_RUN:-}" ]; then
  gcloud auth print-access-token >/dev/null 2>&1 ||
    fail 'gcloud has no credentials; run gcloud auth login.'
  [ -z "$BUCKET" ] || gcloud storage ls "gs://$BUCKET" >/dev/null 2>&1 ||
    fail "gcloud cannot list the bucket gs://$BUCKET; correct BUCKET, or have" \
      'the role storage.objectUser granted on it.'
fi
case ${1:-} in
  --follow | --stop)
    detached "${1#--}"
    exit
    ;;
esac

restarted=0
while :; do
  code=0
  if [ "$(state)" != ACTIVE ] || ! detached running; then
    prepare && on_all "cd specdiff && REQUIREMENT='.[tpu]' \
launch/detached.sh start $(quoted "$@" --config.distributed=True)" || code=$?
  fi
  if [ "$code" = 0 ]; then
    echo 'Following the log; Ctrl-C leaves the run going.' >&2
    detached follow || code=$?
  fi
  if [ "$code" != 0 ]; then
    case $(state) in SUSPEND*) code=$PREEMPTED ;; esac
  fi
  goes_on "$code" "$restarted" || exit "$code"
  restarted=$((restarted + 1))
  echo "It ended with exit code $code; starting it again ($restarted) ..." >&2
  sleep "${RESTART_DELAY:-60}"
done
