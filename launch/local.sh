#!/usr/bin/env bash
# Runs one subcommand of specdiff_jax in the project's environment, from any
# directory; the other launchers end in the same `python -m` line:
#   launch/local.sh [--dry-run] distill --config=configs/tiny.py --workdir=runs/t
# DEVICES=8        makes so many devices out of the CPU, to try a mesh on
# RESTARTS=3       starts a run that failed again; it goes on where it saved
# REQUIREMENT=.    what of setup.cfg is installed, such as '.[tpu]' or '.[gpu]'
set -euo pipefail

DEVICES=${DEVICES:-}
RESTARTS=${RESTARTS:-0}
REQUIREMENT=${REQUIREMENT:-.}
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=yes
  shift
fi

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
ensure_environment "$root" "$REQUIREMENT"
keep_compilations "$root"
LAUNCH=()
if [ -n "$DEVICES" ]; then
  LAUNCH=(env JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$DEVICES")
fi
if [ "$RESTARTS" -eq 0 ]; then
  EXEC=yes # signals then reach the program itself
fi

restarted=0
while :; do
  code=0
  specdiff "$root" "$@" || code=$?
  goes_on "$code" "$restarted" || exit "$code"
  restarted=$((restarted + 1))
  echo "It ended with exit code $code; starting it again ($restarted) ..." >&2
  sleep "${RESTART_DELAY:-10}"
done
