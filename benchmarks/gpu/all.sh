#!/usr/bin/env bash
# Runs items of benchmarks/gpu/README.md: all.sh [--smoke] NUMBER... Each prints JSON
# lines, and goes on where it was stopped.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
cd -- "$root"
OUT=${OUT:-$root/runs/gpu/out} # where results are copied to
PYTHON=${PYTHON:-python3}
[ -x "$root/.venv/bin/python" ] && PYTHON=$root/.venv/bin/python
export PYTHONPATH=$root JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR-$root/runs/gpu/cache}
here=$root/runs/gpu
if [ "${1:-}" = --smoke ]; then # tiny, random models, on any machine
  shift
  smoke=--smoke variant=smoke work=$here/smoke
  rm -rf -- "$work"
  prompts=configs/prompts/tiny.jsonl suites=(configs/prompts/quickstart.jsonl)
  recipe=configs/tiny.py:smoke drafters=() collect=() distill=() chain=() wide=()
  head=(--config.gamma=7) second=() limit=1 batch=1 batches=1,2 rounds=1 steps=2
  systems=ar,lookup seeds=0 losses=streak,ce
else
  smoke='' variant=gpu work=$here/work
  prompts=$here/train.jsonl suites=("$here"/suites/*.jsonl)
  recipe=configs/quickstart.py drafters=(smollm2_135m_instruct.safetensors)
  collect=(--config.batch=256 --config.max_new_tokens=256
    "--config.prompt_buckets=(128,512)")
  distill=(--config.network.vocab=12288 --config.tokens=512)
  chain=(--config.gamma=7 "--config.ar_dtypes=('bfloat16',)")
  wide=("${chain[@]}" --config.drafts=8 --config.budget=57
    --config.ar_slots.bfloat16=1)
  head=() second=(--config.steps=1500) limit=32 batch=32 batches=1,8,32 rounds=3
  systems=ar,lookup,sps,specdiff,specdiff2,best_first,adaptive steps=20
  seeds=0,1,2 losses=streak,dpace,kl,ce,decayed_ce
  XLA_FLAGS="${XLA_FLAGS-} --xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
  export XLA_FLAGS
fi
mkdir -p "$OUT" "$work"

specdiff() { "$PYTHON" -m specdiff_jax "$@"; }
# told ITEM NAME: the last line of stdin, as a JSON line and into OUT.
told() {
  local line
  line=$(tail -n 1)
  printf '%s\n' "$line" >"$OUT/$2.json"
  printf '{"item": %s, "name": "%s", "seconds": %s, %s\n' "$1" "$2" "$SECONDS" "${line#\{}"
}
# keep FILE NAME: a trained file into OUT.
keep() { cp -- "$1" "$OUT/$2.safetensors"; }

item_0() { # unpacks and installs; waits for parts that are still to come
  if [ -d "$here/wheels" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps "$here"/wheels/*.whl
  fi
  mkdir -p runs/verifier
  cat "$here"/verifier.[0-9]* >runs/verifier/SmolLM2-135M-Instruct.Q4_1.gguf
  if sha256sum --status --check "$here/verifier.sha256"; then
    echo '{"item": 0, "ready": true}'
  else
    echo '{"item": 0, "ready": false, "why": "parts of the verifier are missing"}'
    exit 3
  fi
}

texts() { # the trajectories; no more are begun after two minutes
  local count total
  total=$(wc -l <"$prompts")
  SECONDS=0
  for count in 4000 8000 12000 "$total"; do
    [ $SECONDS -gt 120 ] && break
    [ "$count" -gt "$total" ] && count=$total
    specdiff collect --config=configs/distill_smollm2.py:$variant \
      --prompts="$prompts" --limit="$count" --workdir="$work/texts" \
      --config.system=ar --config.exact=False \
      ${collect[@]+"${collect[@]}"} |
      told 1 collect
    [ "$count" = "$total" ] && break
  done
}

item_1() {
  texts
  local drafter=$work/domains/drafter.safetensors suite one
  specdiff distill --config=configs/distill_smollm2.py:$variant \
    --config.data="$work/texts" --workdir="$work/domains" --config.store=int8 \
    ${distill[@]+"${distill[@]}"} | told 1 distill
  keep "$drafter" domains
  for suite in "${suites[@]}"; do
    for one in "$drafter" ${drafters[@]+"${drafters[@]}"}; do
      specdiff bench --config="$recipe" --config.drafter="$one" --prompts="$suite" \
        --limit=$limit --systems=specdiff --rounds=1 --config.batch=$batch \
        ${chain[@]+"${chain[@]}"} |
        told 1 "tau-$(basename "$suite" .jsonl)-$(basename "$(dirname "$one")")"
    done
  done
}

item_2() { # after item 1, whose texts it reads
  local drafter=$work/domains/drafter.safetensors
  specdiff distill --config=configs/head_smollm2.py:$variant \
    --config.data="$work/texts" --config.start_from="$drafter" --config.store=int8 \
    ${head[@]+"${head[@]}"} --workdir="$work/markov" | told 2 markov
  keep "$work/markov/head.safetensors" markov
  specdiff distill --config=configs/distill_dflash_smollm2.py:$variant \
    --config.data="$work/texts" --config.store=int8 --workdir="$work/dflash" |
    told 2 dflash
  keep "$work/dflash/drafter.safetensors" dflash
  specdiff distill --config=configs/distill_smollm2.py:$variant \
    --config.data="$work/texts" --config.start_from="$drafter" \
    --config.loss=variable_prefix --config.prefix_base=0.9 --config.store=int8 \
    --workdir="$work/second" ${second[@]+"${second[@]}"} | told 2 second
  keep "$work/second/drafter.safetensors" second
}

item_3() {
  specdiff bench --config="$recipe" --systems=$systems --rounds=$rounds \
    --grid=batch=$batches --grid=temperature=0.0,1.0 --prompts="${suites[0]}" \
    --limit=$limit ${wide[@]+"${wide[@]}"} --out="$work/table" | told 3 table
  tar -C "$work" -czf "$OUT/table.tar.gz" table
}

item_4() { # after item 1
  "$PYTHON" benchmarks/measure_step.py configs/distill_smollm2.py:$variant \
    "$work/texts" $steps | told 4 step
}

item_5() { # after item 1
  specdiff sweep --config=configs/ablations/losses_smollm2.py:$variant \
    --config.data="$work/texts" --grid=seed=$seeds --grid=loss=$losses \
    --workdir="$work/losses" | told 5 losses
}

item_6() {
  "$PYTHON" benchmarks/gpu/larger_pair.py $smoke | told 6 larger_pair
}

[ $# -gt 0 ] || { sed -n '2,3s/^# //p' "$0"; exit 2; }
for number; do
  SECONDS=0
  "item_$number"
done
