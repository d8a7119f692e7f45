"""One of two processes that save together, whose disks are full at times.

  python tests/programs/full_disk_process_program.py DIRECTORY

Saves step 0; then step 1 where files may not grow in the second process; step 2
where the first can write none; and step 3. The last line is a JSON object: what
the saves that failed said, and after how many seconds; and the steps that then
could be restored.
"""

import json
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'support'))


def main(directory):
  from specdiff_jax.parallel import processes

  processes.initialize(True, 60)
  import jax
  import numpy as np
  import tiny_training

  from specdiff_jax.core import errors
  from specdiff_jax.parallel import mesh as mesh_lib
  from specdiff_jax.parallel import rules
  from specdiff_jax.training.checkpoint import saving

  mesh = mesh_lib.make_mesh((2, 1))
  state, _ = tiny_training.start((2, 1))
  values = np.random.default_rng(0).standard_normal((100, 100))
  half = jax.make_array_from_callback(
    values.shape, rules.by_row(mesh), lambda index: values[index]
  )
  state = state.replace(params={'head': half})
  saved = saving.Checkpointer(directory)
  said, seconds, soft = [], [], resource.getrlimit(resource.RLIMIT_FSIZE)
  full = {(1, False): 1000, (2, True): 0}
  for step in range(4):
    limit = full.get((step, processes.is_first()), soft[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
    state = state.replace(step=state.step * 0 + step)
    start = time.monotonic()
    try:
      saved.save(state, tiny_training.batches())
      saved.wait()
    except errors.InputError as error:
      said.append(str(error))
      seconds.append(time.monotonic() - start)
  resource.setrlimit(resource.RLIMIT_FSIZE, soft)
  found = {'said': said, 'seconds': seconds, 'steps': saved.steps()}
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
