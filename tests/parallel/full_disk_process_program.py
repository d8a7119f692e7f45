"""One of two processes that save together, whose second one's disk is full.

  python tests/parallel/full_disk_process_program.py DIRECTORY

Saves step 0; then step 1 where files may not grow in the second process; then
step 2. The last line is a JSON object: what the second save said, and the
steps that then could be restored.
"""

import json
import pathlib
import resource
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'training'))


def main(directory):
  from specdiff_jax.parallel import hosts

  hosts.initialize(True, 60)
  import jax
  import numpy as np
  import tiny_training

  from specdiff_jax.core import errors
  from specdiff_jax.parallel import mesh as mesh_lib
  from specdiff_jax.parallel import rules
  from specdiff_jax.training import checkpoint

  mesh = mesh_lib.make_mesh((2, 1))
  state, _ = tiny_training.start((2, 1))
  values = np.random.default_rng(0).standard_normal((100, 100))
  half = jax.make_array_from_callback(
      values.shape, rules.by_row(mesh), lambda index: values[index]
  )
  state = state.replace(params={'head': half})
  saved = checkpoint.Checkpointer(directory, patience=2)
  said, soft = '', resource.getrlimit(resource.RLIMIT_FSIZE)
  for step in range(3):
    full = step == 1 and not hosts.is_first()
    limit = (1000, soft[1]) if full else soft
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    state = state.replace(step=state.step * 0 + step)
    try:
      saved.save(state, tiny_training.batches())
      saved.wait()
    except errors.InputError as error:
      said += str(error)
  print(json.dumps({'said': said, 'steps': saved.steps()}))


if __name__ == '__main__':
  main(sys.argv[1])
