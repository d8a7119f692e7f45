#!/usr/bin/env bash
# Runs one subcommand of specdiff_jax in the project's environment, from any
# directory; the other launchers end in the same `python -m` line:
#   launch/local.sh [--dry-run] distill --config=configs/tiny.py --workdir=runs/t
#   launch/local.sh --install    makes the environment, and starts nothing
# What is installed goes by NVIDIA's driver. A run that is started again goes on
# where it saved; one that was given bad input is not started again.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
DEVICES=${DEVICES:-}         # makes so many devices of the CPU, to try a mesh on
RESTARTS=${RESTARTS:-0}      # how often a run that failed is started again
REQUIREMENT=${REQUIREMENT:-} # what of setup.cfg is installed: .[cuda12], .[tpu]

choose_requirement "$root"
ensure_environment "$root" "$REQUIREMENT"
if [ "${1:-}" = --install ]; then
  exit 0
fi
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
