"""Trains for a while, and says whether memory and compilations stand still.

  python benchmarks/soak.py SECONDS WORKDIR [leak]

Runs `distill` of configs/tiny.py with an evaluation and a checkpoint every 20
steps, in one process, through everything that a long run goes through. Prints
progress to stderr and at last one JSON object: steps, seconds, and of the time
after the first 15 % and two checkpoints rss_mib (medians of its first twelfth
and its last), growth and compilations. `leak` keeps a MiB for each step: the
control, which must grow. It runs with one heap of glibc's (MALLOC_ARENA_MAX=1)
unless told otherwise: else each thread has one, and their holes come and go by
some percent.
"""

import json
import os
import pathlib
import signal
import statistics
import sys
import time

from specdiff_jax.recipes import recipe_file

EVERY = 20
ROOT = pathlib.Path(__file__).resolve().parent.parent


def rss() -> float:
  """Returns the resident memory of this process in MiB."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


class Watch:
  """Sees every step, samples twice a second, and ends the run in time."""

  def __init__(self, seconds, compilations, leak):
    self.start, self.seconds = None, seconds  # starts with the first step
    self.compilations, self.leak = compilations, leak
    self.samples, self.kept = [], []

  def __call__(self, step, steps, values):
    del steps
    self.start = self.start or time.monotonic()
    now = time.monotonic() - self.start
    if self.leak:
      self.kept.append(bytearray(b'x' * 2**20))
    if self.samples and now - self.samples[-1][0] < 0.5:
      return
    self.samples.append((now, step, rss(), self.compilations()))
    if len(self.samples) % 60 == 0:
      print(f'{now:.0f} s, step {step}: {rss():.1f} MiB', file=sys.stderr)
    if now > self.seconds:
      os.kill(os.getpid(), signal.SIGTERM)

  def figures(self):
    """Returns the JSON object, `steps` aside."""
    rest = [
      sample
      for sample in self.samples
      if sample[0] >= 0.15 * self.seconds and sample[1] > 2 * EVERY
    ]
    part = max(1, len(rest) // 12)
    before = statistics.median(sample[2] for sample in rest[:part])
    after = statistics.median(sample[2] for sample in rest[-part:])
    return {
      'seconds': round(self.samples[-1][0], 1),
      'rss_mib': [round(before, 1), round(after, 1)],
      'growth': round(after / before - 1, 5),
      'compilations': rest[-1][3] - rest[0][3],
    }


def main(seconds: float, workdir: str, leak: bool) -> None:
  """Collects, then trains."""
  from specdiff_jax.core import compilations
  from specdiff_jax.recipes import decoding
  from specdiff_jax.recipes import runs
  from specdiff_jax.recipes import training as build_training

  path = str(ROOT / 'configs' / 'tiny.py')
  config = recipe_file.load_recipe(
    path, steps=10**9, eval_every=EVERY, save_every=EVERY
  )
  checkpoint = decoding.verifier(config)
  folder = os.path.join(workdir, 'trajectories')
  prompts = decoding.prompts(config, config.bench.prompts, 0)
  runs.complete(config, checkpoint, prompts, folder, 'lookup')
  run = build_training.run(config, checkpoint, [folder], workdir)
  watch = Watch(seconds, compilations.count, leak)
  result = run.train(watch)
  print(json.dumps({'steps': result.steps} | watch.figures()))


if __name__ == '__main__':
  if 'MALLOC_ARENA_MAX' not in os.environ:  # read before anything runs
    os.environ['MALLOC_ARENA_MAX'] = '1'
    os.execv(sys.executable, [sys.executable, *sys.argv])
  main(float(sys.argv[1]), sys.argv[2], 'leak' in sys.argv[3:])
