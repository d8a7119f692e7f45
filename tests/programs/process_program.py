"""`specdiff_jax`, writing which trajectories each step of it was given.

python tests/programs/process_program.py RECORDS.jsonl ARGUMENTS...
"""

import json
import sys

from specdiff_jax import __main__
from specdiff_jax.training import loop


def main(path, argv):
  given = loop._next

  def noting(iterator, step):
    batch = given(iterator, step)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps([step, batch.record.tolist()]) + '\n')
    return batch

  loop._next = noting
  return __main__.main(argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1], sys.argv[2:]))
