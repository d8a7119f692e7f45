#!/usr/bin/env bash
# Runs one subcommand of specdiff_jax in the project's environment, from any
# directory: launch/local.sh distill --config=configs/tiny.py --workdir=runs/t
# The other launchers end in the same `python -m` line.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
ensure_environment "$root" .
keep_compilations "$root"
exec "$root/.venv/bin/python" -m specdiff_jax "$@"
