# Sourced by the launchers. Answers --help, takes --dry-run, makes and reuses the
# project's .venv, and starts programs. Variables: DRY_RUN (print, do not run),
# EXEC (become what is run), RESTARTS (after failures), LAUNCH (words before the
# program), REQUIREMENT (what of setup.cfg is installed).
# shellcheck shell=bash

# A launcher's own, which a launcher around it (test.sh) may have passed down.
unset EXEC LAUNCH

case ${1:-} in
  -h | --help) # the launcher's first comment, and its variables with defaults
    awk 'NR == 1 || /^#SBATCH/ { next }
      !body && /^#/ { sub(/^# ?/, ""); print; next }
      { body = 1 }
      /^[A-Z]+=\$\{[A-Z]+:-/ && sub(/\$\{[A-Z]+:-/, "") {
        sub(/\}/, ""); split($0, parts, / *# /)
        if (!found++) print "\nVariables, with their defaults:"
        if (length(parts[1]) > 24) { print "  " parts[1]; parts[1] = "" }
        printf "  %-24s  %s\n", parts[1], parts[2]
      }' "$0"
    exit 0
    ;;
  --dry-run)
    DRY_RUN=yes
    shift
    ;;
esac

# How `distill` ends when it saved its state because the machine is taken away.
PREEMPTED=75

# fail WORD...: one sentence, and the exit code of bad input.
fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# needs PROGRAM HINT: fails where a program is not on PATH.
needs() {
  [ -n "${DRY_RUN:-}" ] || command -v "$1" >/dev/null 2>&1 ||
    fail "$1 is not on PATH; $2."
}

# no_addresses HINT ARGUMENT...: fails before anything is started where the
# program would refuse an argument, which is the address of a bucket.
no_addresses() {
  local word hint=$1
  shift
  for word; do
    case $word in
      *gs://*) fail "$word: the program reads and writes mounted disks; $hint." ;;
    esac
  done
}

# specdiff ROOT ARGUMENT...: the line that all launchers end in. One heap for all
# threads of glibc's: else those that save leave free pages in each (a day's run
# grows by percents). On a GPU loops and branches go into CUDA graphs too, unless
# XLA_FLAGS says otherwise: else the host reads predicates back in every cycle.
specdiff() {
  local python=$1/.venv/bin/python
  case "${XLA_FLAGS-} $(echo "$1"/.venv/.installed*)" in
    *_command_buffer=*) ;;
    *.\[cuda*)
      XLA_FLAGS="${XLA_FLAGS-} --xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
      export XLA_FLAGS
      ;;
  esac
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
# Not if it is done, was given bad input (2) or what does not fit (3), cannot be
# started (126, 127), or was interrupted by hand (130). What was preempted is,
# however often: it saved its state (75), or had none yet (143, by SIGTERM).
goes_on() {
  case $1 in
    0 | 2 | 3 | 126 | 127 | 130) return 1 ;;
    "$PREEMPTED" | 143) return 0 ;;
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

# choose_requirement ROOT: sets REQUIREMENT, unless it is set, to what this
# machine's GPU takes, and WHY. What is installed stays: jax has room for one
# CUDA, and newer drivers run the older one.
choose_requirement() {
  local cuda driver='' capability=''
  WHY=""
  [ -z "${REQUIREMENT:-}" ] || return 0
  for cuda in cuda12 cuda13; do
    if [ -e "$1/.venv/.installed .[$cuda]" ]; then
      REQUIREMENT=".[$cuda]" WHY='as before'
      return 0
    fi
  done
  REQUIREMENT=. WHY='for the CPU: no NVIDIA driver was found'
  IFS=', ' read -r driver capability < <(
    nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader \
      2>/dev/null
  ) || true
  local major=${driver%%.*} compute=${capability/./}
  case $major-$compute in
    -* | *- | *[!0-9-]*) return 0 ;;
  esac
  WHY="for the NVIDIA driver $driver"
  if [ "$major" -lt 525 ]; then
    WHY="for the CPU: the NVIDIA driver $driver is older than 525"
  elif [ "$major" -lt 580 ] || [ "$compute" -lt 75 ]; then
    REQUIREMENT='.[cuda12]' # CUDA 13 left out the GPUs before Turing (7.5)
  else
    REQUIREMENT='.[cuda13]'
  fi
}

# ensure_environment ROOT REQUIREMENT: installs REQUIREMENT ('.' or '.[test]')
# editable into ROOT/.venv, unless that was done from this very setup.cfg.
ensure_environment() {
  local root=$1 requirement=$2 python wanted other
  if [ -n "${DRY_RUN:-}" ]; then
    return 0
  fi
  local venv=$root/.venv
  for other in cuda12 cuda13; do
    if [ -e "$venv/.installed .[$other]" ] && [[ $requirement == *cuda* ]] &&
      [[ $requirement != *$other* ]]; then
      fail "$venv holds .[$other], and jax has room for one CUDA; remove $venv," \
        "which is made anew, or unset REQUIREMENT."
    fi
  done
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
  echo "Installing specdiff_jax as $requirement${WHY:+, $WHY}, into $venv" \
    "(a few minutes once; REQUIREMENT=... has another installed) ..." >&2
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

# needs_environment ROOT: fails with what to do where there is no environment,
# and installs nothing.
needs_environment() {
  [ -n "${DRY_RUN:-}" ] || "$1/.venv/bin/python" -c \
    'import importlib.util, sys; sys.exit(not importlib.util.find_spec("jax"))' \
    >/dev/null 2>&1 || fail "there is no environment with jax in $1/.venv;" \
    "make it on a node that has a network, by REQUIREMENT='.[cuda12]'" \
    "launch/local.sh --install ('.[cuda13]' for drivers from 580 on), or let" \
    "the job do it by INSTALL=yes."
}
