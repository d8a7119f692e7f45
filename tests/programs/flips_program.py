"""Flips bits in checkpoints, and looks that no other params come of it.

  python tests/programs/flips_program.py FLIPS

Two checkpoints are written, then, FLIPS times, a single bit of a copy is
flipped (in any file of both, each file as likely as the others). What is
restored has to be one of the two states to the bit, the older one only with a
word about the newer; or one InputError. The best one has to be the right one.
The last line is a JSON object: how often each came, the longest case in
seconds of a CPU, and the most memory in MiB.
"""

import collections
import json
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time

import tiny_training

from specdiff_jax.core import errors
from specdiff_jax.training import checksum
from specdiff_jax.training.checkpoint import saving

TAUS = {2: 2.5, 4: 1.5}  # by step; 2 is the best


def write(folder):
  """Writes two checkpoints; returns the digest of each state, by step."""
  state, step_fn = tiny_training.start()
  iterator, digests = tiny_training.batches(), {}
  with saving.Checkpointer(str(folder)) as saved:
    for step in range(1, 5):
      state, _ = step_fn(state, next(iterator), None)
      if step in TAUS:
        digests[step] = checksum.digest(state)
        saved.save(state, iterator, TAUS[step])
  return digests


def outcome(folder, digests):
  """Returns what a restore comes to: said, newest, older."""
  told = []
  template, _ = tiny_training.start()
  iterator = tiny_training.batches()
  try:
    saved = saving.Checkpointer(str(folder), say=told.append)
    state = saved.restore(template, iterator)
    best = saved.best()
    if best is not None:
      other = saved.at(best, template, tiny_training.batches())
      assert checksum.digest(other) == digests[best]
  except errors.InputError as error:
    assert len(str(error)) < 1500, error
    return 'said'
  step = int(state.step)
  assert checksum.digest(state) == digests[step], step
  assert checksum.position(iterator) == {'next_index': step}, iterator
  aside = [path.name for path in folder.glob('*.corrupt')]
  assert len(aside) == len(told), (aside, told)
  assert best == (4 if '2.corrupt' in aside else 2), best
  assert (step == 4) == ('4.corrupt' not in aside)
  return 'newest' if step == 4 else 'older'


def main(count, seed=0):
  """Returns how often each outcome came, and the longest case."""
  chance, found, longest = random.Random(seed), collections.Counter(), 0.0
  with tempfile.TemporaryDirectory() as parent:
    whole, copy = pathlib.Path(parent) / 'whole', pathlib.Path(parent) / 'copy'
    digests = write(whole)
    names = [
        path.relative_to(whole) for path in sorted(whole.rglob('*'))
        if path.is_file() and path.stat().st_size
    ]  # fmt: skip
    for _ in range(count):
      shutil.copytree(whole, copy)
      name = chance.choice(names)
      data = bytearray((whole / name).read_bytes())
      data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
      (copy / name).write_bytes(data)
      start = time.process_time()
      try:
        found[outcome(copy, digests)] += 1
      except Exception as error:
        raise AssertionError(f'after a flip in {name}') from error
      longest = max(longest, time.process_time() - start)
      shutil.rmtree(copy)
  return {**found, 'seconds': round(longest, 2)}


if __name__ == '__main__':
  told = main(*map(int, sys.argv[1:]))
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
  print(json.dumps(told | {'mib': used}))
