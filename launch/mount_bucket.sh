#!/usr/bin/env bash
# Mounts a bucket of Cloud Storage on this machine, with gcsfuse, which it
# installs on Debian and Ubuntu where it is missing:
#   launch/mount_bucket.sh my-bucket /mnt/bucket
# A bucket with a hierarchical namespace renames checkpoints at once; in others
# each file is copied. A bucket has no locks: give a work directory to one run.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
[ -z "${DRY_RUN:-}" ] || fail "there is no dry run of a mount."
[ $# = 2 ] || fail "give a bucket and a folder (--help says more)."

bucket=${1#gs://} folder=$2
if mountpoint -q "$folder"; then
  mounted=$(findmnt -n -o SOURCE --mountpoint "$folder")
  [ "$mounted" = "$bucket" ] ||
    fail "$folder holds $mounted already, not the bucket $bucket; choose" \
      "another folder by MOUNT."
  exit 0
fi
if ! command -v gcsfuse >/dev/null 2>&1; then
  packages=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq install -y gcsfuse
fi
sudo mkdir -p -- "$folder"
sudo chown "$(id -u):$(id -g)" -- "$folder"
gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" "$folder" >&2 ||
  fail "the bucket gs://$bucket cannot be mounted (see above); this machine's" \
    "service account needs the role storage.objectUser on it."
