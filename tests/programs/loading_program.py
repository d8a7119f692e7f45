"""Loads a model onto 8 fake devices and says what that took, as JSON.

JAX_NUM_CPU_DEVICES=8 python loading_program.py DIRECTORY STREAM|NAIVE BLOCK
"""

import functools
import json
import sys

import jax
import numpy as np

from specdiff_jax.checkpoints import params as params_lib
from specdiff_jax.checkpoints import stored
from specdiff_jax.checkpoints import weights
from specdiff_jax.parallel import mesh as mesh_lib
from specdiff_jax.parallel import rules


def memory(name):
  """Returns a line of /proc/self/status in bytes."""
  with open('/proc/self/status', encoding='utf-8') as file:
    (line,) = [line for line in file if line.startswith(name)]
  return int(line.split()[1]) * 1024


def main(folder, how, block):
  stored.BLOCK = int(block)
  mesh = mesh_lib.make_mesh({'data': 2, 'model': 4})
  place = functools.partial(rules.shardings, rules=rules.TRANSFORMER, mesh=mesh)
  jax.block_until_ready(jax.device_put(np.ones(8)))
  with open('/proc/self/clear_refs', 'w', encoding='utf-8') as file:
    file.write('5')  # the peak begins anew
  before = memory('VmRSS')
  seen = []
  if how == 'NAIVE':
    loaded = weights.load(folder, 'bfloat16')
    params = jax.device_put(loaded.params, place(loaded.params))
  else:
    loaded = weights.load(
      folder, 'bfloat16', shardings=place, progress=lambda *n: seen.append(n)
    )
    params = loaded.params
  jax.block_until_ready(params)
  peak = memory('VmHWM') - before
  leaves = jax.tree.leaves(params)
  shards = [s.data for x in leaves for s in x.addressable_shards]
  plain = weights.load(folder, 'bfloat16').params
  flat = dict(params_lib.flatten(plain))
  wrong = [
    name
    for name, array in params_lib.flatten(params)
    for shard in array.addressable_shards
    if not np.array_equal(shard.data, flat[name][shard.index])
  ]
  expected = place(plain)
  print(
    json.dumps(
      {
        'peak': peak,
        'shards': sum(shard.nbytes for shard in shards),
        'largest': max(x.nbytes for x in leaves),
        'total': sum(x.nbytes for x in leaves),
        'wrong': wrong,
        'shardings_kept': jax.tree.all(
          jax.tree.map(lambda x, s: x.sharding == s, params, expected)
        ),
        'query': params['layer_0']['query'].addressable_shards[0].data.shape,
        'down': params['layer_0']['down'].addressable_shards[0].data.shape,
        'fingerprint': loaded.fingerprint,
        'progress': seen[-1] if seen else None,
        'dtypes': sorted({str(x.dtype) for x in leaves}),
      }
    )
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
