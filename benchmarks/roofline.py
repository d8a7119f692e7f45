"""Bytes over their floor, what fits, compile times: of programs for TPUs.

  python benchmarks/roofline.py [ROW ...]

Needs the compiler for TPUs and no TPU (pip install '.[tpu]'). Rows:

  bytes    HBM bytes over the floor, Llama-3.1-8B and a drafter of DFlash's shape
           (gamma 15, bf16, greedy), on one v5e: five programs
  prefill  whether prompts of 32k and 128k tokens fit on v5e:2x2
  scanned  bytes of a cycle with layers in a loop over those of unrolled ones
  compile  CPU seconds of compiling the decode loop, all layers, with top-k and
           top-p: layers in a loop, as they run there, and unrolled

A chip of v5e does not hold all of these models. So `bytes` and `scanned` compile
2 + 1, 3 + 1 and 4 + 2 layers of verifier and drafter, and extrapolate to 32 + 5:
a layer of each costs what it adds. The last line is one JSON object.
"""

import json
import sys
import time

import jax

from specdiff_jax.recipes import recipe_file

RECIPE = 'configs/llama3_1_8b_dflash.py'
TOPOLOGY = 'v5e:2x2'
ROOMY = 'v5p:2x2x1'
LAYERS = 32, 5
# Name, system, batch, slots of a row, chip.
PROGRAMS = (
  ('AR b1 32k', 'ar', 1, 32768, TOPOLOGY),
  ('DFlash b1 32k', 'specdiff', 1, 32768, TOPOLOGY),
  ('DFlash b8 8k', 'specdiff', 8, 8192, TOPOLOGY),
  ('best-first 64 b8 8k', 'best_first', 8, 8192, TOPOLOGY),
  # The caches of 64 rows and six layers are more than a v5e has room for.
  ('DFlash b64 8k, v5p', 'specdiff', 64, 8192, ROOMY),
)


def recipe(**changes):
  """Returns the recipe with other values."""

  return recipe_file.load_recipe(RECIPE).change(**changes)


def shape(slots: int) -> dict:
  """Returns the values whose requests fill so many slots."""
  new = 1024
  return {'prompt_buckets': (slots - new,), 'max_new_tokens': new}


def cycle(config, layers: int, scan: bool | None, topology_name: str):
  """Returns the roofline of a cycle on one chip."""
  from specdiff_jax.parallel import topology
  from specdiff_jax.tools.aot import lowering
  from specdiff_jax.tools.aot import memory
  from specdiff_jax.tools.aot import roofline

  devices = topology.devices(topology_name)[:1]
  chip = topology.chip(devices)
  program = lowering.program(
    config, 'decode', devices, layers=layers, scan=scan
  )
  outcome = memory.compiled(program.lowered, int(chip.memory), program.names)
  if outcome.costs is None:
    sys.exit(f'{layers} layers do not fit on a chip of {topology_name}')
  return roofline.Roofline(chip, outcome.costs, program.floor, True)


def whole(
  config, scan: bool | None = None, topology_name: str = TOPOLOGY
) -> tuple[float, float]:
  """Returns bytes and floor of a cycle of all layers, by extrapolation."""
  lines = [cycle(config, n, scan, topology_name) for n in (2, 3, 4)]
  found = []
  for of in (lambda x: x.hbm_bytes, lambda x: x.floor_bytes):
    first, second, third = map(of, lines)
    layer = second - first
    drafter = third - first - 2 * layer  # of 2 + 1, 3 + 1 and 4 + 2 layers
    verifier, drafts = LAYERS[0] - 2, LAYERS[1] - 1
    if config.drafting.system == 'ar':
      drafter = 0
      layer = (third - first) / 2
    found.append(first + verifier * layer + drafts * drafter)
  return found[0], found[1]


def measure_bytes() -> list[dict]:
  """Returns the row of each program."""
  rows = []
  for name, system, batch, slots, topology_name in PROGRAMS:
    config = recipe(system=system, batch=batch, **shape(slots))
    moved, floor = whole(config, topology_name=topology_name)
    rows.append({'program': name, 'hbm_gb': round(moved / 1e9, 2),
                 'floor_gb': round(floor / 1e9, 2),
                 'ratio': round(moved / floor, 3)})  # fmt: skip
    print(rows[-1], flush=True)
  return rows


def measure_prefill() -> list[dict]:
  """Returns whether long prompts fit."""
  from specdiff_jax.tools.aot import certificate

  rows = []
  for tokens in (32768, 131072 - 1024):
    config = recipe(prompt_buckets=(tokens,), max_new_tokens=1024)
    found = certificate.certify(config, TOPOLOGY, 'prefill')
    rows.append({'tokens': tokens, 'fits': found.fits,
                 'peak_gb': round(found.outcome.peak / 1e9, 2)})  # fmt: skip
    print(rows[-1], flush=True)
  return rows


def measure_scanned() -> dict:
  """Returns bytes of the scanned form over those of the unrolled one."""
  config = recipe(batch=8, **shape(8192))
  scanned, unrolled = whole(config, True)[0], whole(config, False)[0]
  row = {'scanned_gb': round(scanned / 1e9, 2),
         'unrolled_gb': round(unrolled / 1e9, 2),
         'ratio': round(scanned / unrolled, 3)}  # fmt: skip
  print(row, flush=True)
  return row


def measure_compile() -> dict:
  """Returns the CPU seconds of compiling, where the models fit: on v5p."""
  from specdiff_jax.parallel import topology
  from specdiff_jax.tools.aot import lowering

  config = recipe(temperature=1.0, top_k=50, top_p=0.9, **shape(8192))
  devices = topology.devices(ROOMY)[:1]
  row = {}
  for name, scan in (('scanned', True), ('unrolled', False)):
    program = lowering.program(config, 'decode', devices, scan=scan)
    begin = time.process_time()
    program.lowered.compile()
    row[f'{name}_cpu_seconds'] = round(time.process_time() - begin, 1)
    print(row, flush=True)
  return row


ROWS = {'bytes': measure_bytes, 'prefill': measure_prefill,
        'scanned': measure_scanned, 'compile': measure_compile}  # fmt: skip

if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  print(json.dumps({name: ROWS[name]() for name in sys.argv[1:] or ROWS}))
