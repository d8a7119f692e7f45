"""Prints the HBM bytes of a cycle of small programs for TPU v5e, as JSON.

  python tests/programs/hbm_bytes.py [--update]

Two layers of Llama-3.1-8B and one of a drafter of DFlash's shape, with a small
vocabulary: as wide as that, since what fits into a chip's scratch memory moves
no bytes. `--update` writes what tests/tools/test_ratchet.py holds programs to.
Needs the compiler for TPUs, whose version stands beside them.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import sys

import jax

from specdiff_jax.recipes import recipe_file

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECORD = ROOT / 'tests' / 'tools' / 'hbm_bytes.json'
# System, batch, tokens of a prompt.
PROGRAMS = (
  ('ar', 1, 31744),
  ('specdiff', 2, 3072),
  ('best_first', 2, 3072),
)


def main(update: bool) -> None:
  """Compiles, prints and perhaps records."""
  jax.config.update('jax_platforms', 'cpu')
  from specdiff_jax.checkpoints import presets
  from specdiff_jax.parallel import topology
  from specdiff_jax.tools.aot import hlo_costs
  from specdiff_jax.tools.aot import lowering
  from specdiff_jax.tools.aot import roofline

  presets.PUBLISHED['small'] = dataclasses.replace(
    presets.published('llama3.1_8b'), vocab_size=16384, layers=2
  )
  devices = topology.devices('v5e:2x2')[:1]
  recipe = recipe_file.load_recipe(f'{ROOT}/configs/llama3_1_8b_dflash.py')
  recipe = recipe.change(verifier='preset:small', gamma=7, budget=16)
  found: dict = {'libtpu': importlib.metadata.version('libtpu')}
  for system, batch, prompt in PROGRAMS:
    one = recipe.change(system=system, batch=batch, prompt_buckets=(prompt,))
    program = lowering.program(one, 'decode', devices)
    text = program.lowered.compile().as_text()
    costs = hlo_costs.read(text or '', program.names)
    line = roofline.Roofline(
      topology.chip(devices), costs, program.floor, program.looped
    )
    found[system] = line.hbm_bytes
  print(json.dumps(found))
  if update:
    RECORD.write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  main('--update' in sys.argv)
