#!/usr/bin/env bash
# Starts one subcommand so that it outlives the terminal, and follows its log:
#   launch/detached.sh start distill --config=... --workdir=...
#   launch/detached.sh follow     ends as the run does, with its exit code
#   launch/detached.sh running    whether it is running
#   launch/detached.sh stop       has it save its state and end (SIGTERM)
# Ctrl-C ends `follow`, not the run. A copy of the repository has one run at a
# time; launch/local.sh, which it starts, says which variables that takes.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
FOLDER=${FOLDER:-$root/runs/detached} # where log, pid and code are

if [ -n "${DRY_RUN:-}" ]; then
  [ "${1:-}" = start ] || fail "--dry-run goes with start alone."
  exec "$root/launch/local.sh" --dry-run "${@:2}"
fi

pid=$(cat -- "$FOLDER/pid" 2>/dev/null || true)
running() { [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }
case ${1:-} in
  start)
    shift
    if running; then
      fail "a run is going already; launch/detached.sh follow shows it."
    fi
    mkdir -p -- "$FOLDER"
    rm -f -- "$FOLDER/code"
    # A session of its own, whose shell outlives SIGTERM to write down the code.
    # shellcheck disable=SC2016 # that shell expands it
    setsid nohup bash -c 'trap : TERM; "${@:2}"; echo $? >"$1/code"' - \
      "$FOLDER" "$root/launch/local.sh" "$@" \
      >"$FOLDER/log" 2>&1 </dev/null &
    echo $! >"$FOLDER/pid"
    echo "Started; the log is $FOLDER/log." >&2
    ;;
  follow)
    [ -n "$pid" ] || fail "nothing was started here."
    tail -n 500 -F --pid="$pid" -- "$FOLDER/log"
    [ -e "$FOLDER/code" ] || {
      echo "The run was killed; the same command goes on with it." >&2
      exit 1
    }
    exit "$(cat -- "$FOLDER/code")"
    ;;
  running) running ;;
  stop) ! running || kill -TERM -- "-$pid" ;;
  *) fail "give start, follow, running or stop (--help says more)." ;;
esac
