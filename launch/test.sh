#!/usr/bin/env bash
# The second command: installs what the tests need and runs them all, a file in
# each of up to eight processes. With --fast first it leaves out what is marked
# as slow (4 minutes instead of 25 on two cores). Further
# arguments go to pytest:
#   ./launch/test.sh tests/tools -k timing
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
if [ "${1:-}" = --fast ]; then
  shift
  set -- -m 'not slow' "$@"
fi
ensure_environment "$root" '.[test]'
cd -- "$root"
EXEC=yes run "$root/.venv/bin/python" -m pytest \
  -n auto --maxprocesses 8 --dist loadfile "$@"
