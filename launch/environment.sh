# Sourced by the launchers. Makes and reuses the project's .venv, and starts
# programs. Variables: DRY_RUN (print, do not run), EXEC (become what is run),
# RESTARTS (after failures), LAUNCH (words before the program).
# shellcheck shell=bash

# How `distill` ends when it saved its state because the machine is taken away.
PREEMPTED=75

# specdiff ROOT ARGUMENT...: the line that all launchers end in. One heap for all
# threads of glibc's: else those that save leave free pages in each (a day's run
# grows by percents).
specdiff() {
  local python=$1/.venv/bin/python
  shift
  export MALLOC_ARENA_MAX=${MALLOC_ARENA_MAX-1}
  run ${LAUNCH[@]+"${LAUNCH[@]}"} "$python" -m specdiff_jax "$@"
}

# run WORD...: runs a command, or prints it as it could be typed.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    quoted "$@"
  else
    ${EXEC:+exec} "$@"
  fi
}

# quoted WORD...: prints words so that a shell reads the same ones back.
quoted() {
  local line
  line=$(printf ' %q' "$@")
  printf '%s\n' "${line# }"
}

# goes_on CODE RESTARTED: whether a run that ended with CODE, and was started
# again RESTARTED times, is started again; it goes on from its last checkpoint.
# Not if it is done, was given bad input (2) or what does not fit (3), or was
# interrupted by hand (130).
goes_on() {
  case $1 in
    0 | 2 | 3 | 130) return 1 ;;
    "$PREEMPTED") return 0 ;;
    *) [ "$2" -lt "${RESTARTS:-3}" ] ;;
  esac
}

# keep_compilations ROOT: later runs load compiled programs, which saves most
# of their start. Set the variable to another folder, or to nothing, to differ.
keep_compilations() {
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$1/runs/compiled}
}

# Prints the first Python that is 3.11 or newer; fails with a message if none.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  echo "specdiff_jax needs Python 3.11 or newer, and none was found on PATH." \
    "Install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 2
}

# ensure_environment ROOT REQUIREMENT: installs REQUIREMENT ('.' or '.[test]')
# editable into ROOT/.venv, unless that was done from this very setup.cfg.
ensure_environment() {
  local root=$1 requirement=$2 python wanted
  if [ -n "${DRY_RUN:-}" ]; then
    return 0
  fi
  local venv=$root/.venv
  if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    python=$(find_python) || return 2
    echo "Making $venv with $("$python" --version) ..." >&2
    "$python" -m venv --clear "$venv" || {
      echo "Could not make $venv: see above. On Debian and Ubuntu the package" \
        "python3-venv is needed." >&2
      return 2
    }
  fi
  wanted=$(printf '%s\n' "$root" && cat -- "$root/setup.cfg")
  if [ "$(cat -- "$venv/.installed $requirement" 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  echo "Installing specdiff_jax and what it needs (a few minutes once) ..." >&2
  (
    cd -- "$root" &&
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$requirement"
  ) || {
    echo "pip could not install specdiff_jax (see above). Check the network" \
      "and the space on the disk, then run $0 again." >&2
    return 2
  }
  printf '%s\n' "$wanted" >"$venv/.installed $requirement"
  # What the tests need includes what everything else needs.
  printf '%s\n' "$wanted" >"$venv/.installed ."
}
