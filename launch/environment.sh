# Sourced by the launchers. Makes and reuses the project's .venv.
# shellcheck shell=bash

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
