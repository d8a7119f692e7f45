#!/usr/bin/env bash
# The first command: makes .venv, installs the package (for the GPU, where
# NVIDIA's driver is found), obtains the verifier and benchmarks the shipped
# drafter against plain decoding. A second run reuses all of it. Further
# arguments go to `bench`:
#   ./launch/quickstart.sh --limit 2 --config.temperature=1.0
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
REQUIREMENT=${REQUIREMENT:-} # what of setup.cfg is installed: .[cuda12], .[tpu]

choose_requirement "$root"
ensure_environment "$root" "$REQUIREMENT"
keep_compilations "$root"
EXEC=yes specdiff "$root" bench --config="$root/configs/quickstart.py" \
  --config.cache_dir="$root/runs/verifier" "$@"
