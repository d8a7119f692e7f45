#!/usr/bin/env bash
# Lint, format and types, as CI checks them. Further arguments go to `ruff
# check`:
#   ./launch/lint.sh --fix
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
ensure_environment "$root" '.[dev]'
cd -- "$root"
bin=$root/.venv/bin
run "$bin/ruff" check "$@"
run "$bin/ruff" format --check
run "$bin/basedpyright"
