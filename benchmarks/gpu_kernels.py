"""Counts the kernels that a decode cycle launches on an H100 that is not here.

  python benchmarks/gpu_kernels.py [--list] [--small] [--kernel] [SYSTEM ...]

Compiles the decode loop of ar, specdiff and specdiff2 (or those named) at batch
1, temperature 0 and the quickstart's sizes. There launches, not bytes, are what
a cycle costs on a GPU. --list prints every kernel, too; --small compiles three
layers of the verifier in place of all; --kernel compiles with
config.attention=kernel. Needs the compiler for GPUs and no GPU
(pip install '.[cuda12]'). The last line is one JSON object.
"""

import collections
import json
import re
import sys

import jax

from specdiff_jax.recipes import recipe_file

SYSTEMS = ('ar', 'specdiff', 'specdiff2')
# The sizes of the drafter that is shipped for the quickstart's verifier.
SIZES = {
  'drafter': 'random',
  'network': {
    'layers': 2,
    'features': (9, 18, 27, 29),
    'trunk': 896,
    'vocab': 8192,
    'ngram': 3,
  },
}
SMALL = {'network': SIZES['network'] | {'features': (0, 1, 2)}}


def kernels(
  system: str, small: bool = False, attention: str = ''
) -> collections.Counter:
  """Returns the kernels of a cycle by their names, layers taken together."""
  from specdiff_jax.parallel import topology
  from specdiff_jax.tools.aot import hlo_costs
  from specdiff_jax.tools.aot import lowering

  values = {'exact': False, 'prompt_buckets': (128,), **SIZES}
  values |= {'attention': attention} | (SMALL if small else {})
  config = recipe_file.load_recipe('configs/quickstart.py').change(
    system=system, **values
  )
  devices = topology.devices('h100')
  program = lowering.program(config, 'decode', devices, layers=3 * small)
  text = program.lowered.compile().as_text() or ''
  found = collections.Counter()
  for one in hlo_costs.read(text, program.names).work:
    if one.looped:
      label = one.label.partition('while/body/')[2] or one.label
      found[re.sub(r'layer_\d+', 'layer', label)] += one.times
  return found


def main(arguments: list[str]) -> None:
  """Compiles, counts and prints."""
  from specdiff_jax.core import errors

  totals = {}
  for system in [x for x in arguments if x[:2] != '--'] or SYSTEMS:
    try:
      form = 'kernel' if '--kernel' in arguments else ''
      found = kernels(system, '--small' in arguments, form)
    except errors.InputError as error:
      sys.exit(str(error))
    totals[system] = found.total()
    print(f'{system}: {found.total()} kernels a cycle', flush=True)
    for label, count in found.most_common() if '--list' in arguments else ():
      print(f'{count:6} {label}')
  print(json.dumps(totals))


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  main(sys.argv[1:])
