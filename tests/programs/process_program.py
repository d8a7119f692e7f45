"""`specdiff_jax`, writing which trajectories each step of it was given.

python tests/programs/process_program.py RECORDS.jsonl ARGUMENTS...
"""

import json
import sys

from specdiff_jax import __main__
from specdiff_jax.training import loop


def main(path, argv):
  given = loop._Watch.add

  def noting(metrics, step, batch, left_out):
    given(metrics, step, batch, left_out)
    with open(path, 'a', encoding='utf-8') as file:
      file.write(json.dumps([step, batch.record.tolist()]) + '\n')

  loop._Watch.add = noting
  return __main__.main(argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1], sys.argv[2:]))
