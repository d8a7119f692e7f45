#!/usr/bin/env bash
# Prepares runs/gpu for a machine that nothing can be fetched from: wheels, the
# quickstart's verifier in parts, prompts. Arguments: prompt files; those named
# *_train.jsonl are trained on, the others are suites.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd -- "$root"
# shellcheck source=launch/environment.sh
. "$root/launch/environment.sh"
VERSION=${VERSION:-3.12}     # of Python there
PLATFORM=${PLATFORM:-manylinux_2_28_x86_64}
# What a machine with jax, flax, optax, orbax-checkpoint, chex, tokenizers and
# safetensors may still lack.
PACKAGES=${PACKAGES:-absl-py array-record attrs cloudpickle dm-tree etils gguf googleapis-common-protos grain immutabledict jinja2 markupsafe ml-collections more-itertools portpicker promise protobuf six tensorflow-datasets tensorflow-metadata termcolor toml tqdm wrapt}

[ $# -gt 0 ] || fail "give prompt files, such as gsm8k_train.jsonl humaneval.jsonl"
here=$root/runs/gpu
mkdir -p "$here/wheels" "$here/suites"
for package in $PACKAGES; do
  "$root/.venv/bin/python" -m pip download --quiet --disable-pip-version-check \
    --no-deps --only-binary=:all: --python-version "$VERSION" \
    --platform "$PLATFORM" --platform manylinux2014_x86_64 --platform any \
    --dest "$here/wheels" "$package" 2>/dev/null ||
    # Of a package without wheels one is built, which has to be pure Python.
    "$root/.venv/bin/python" -m pip wheel --quiet --disable-pip-version-check \
      --no-deps --wheel-dir "$here/wheels" "$package" ||
    echo "${0##*/}: there is no wheel of $package" >&2
done

suites=()
for file; do
  case $file in
    *_train.jsonl) ;;
    *)
      head -n 32 -- "$file" >"$here/suites/$(basename -- "$file")"
      suites+=("$file")
      ;;
  esac
done
: >"$here/train.jsonl"
for file; do
  case $file in
    *_train.jsonl)
      specdiff "$root" prompts --from="$file" --id_field=id --overwrite \
        ${suites[@]+--against="$(IFS=,; echo "${suites[*]}")"} \
        --out="$here/part.jsonl" >/dev/null
      cat "$here/part.jsonl" >>"$here/train.jsonl"
      ;;
  esac
done
rm -f -- "$here/part.jsonl"
# One order for all domains, whatever is left out at the end.
shuf --random-source=<(yes) "$here/train.jsonl" -o "$here/train.jsonl"

verifier=$root/runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$verifier" ] || fail "$verifier is not there; run launch/quickstart.sh once"
split --bytes=12M --numeric-suffixes "$verifier" "$here/verifier."
(cd "$here" && sha256sum "$verifier" | sed "s|$root/||" >verifier.sha256)
du -sh "$here"/* >&2
