"""Times the adaptive system beside fixed draft lengths and plain decoding.

  python benchmarks/adaptive.py --config=configs/quickstart.py \
      --prompts=prompts.jsonl --limit=6 --rounds=3

The flags are those of `bench`. All decode the same prompts in turns, and ratios
are medians over the turns: the adaptive system over each fixed length (it should
reach 0.97 of the best), and with an untrained drafter over plain decoding (0.98).
The last line is JSON. The machine should be quiet.
"""

import collections
import json
import statistics
import sys

from specdiff_jax.cli import bench
from specdiff_jax.decoding import request as request_lib
from specdiff_jax.recipes import decoding
from specdiff_jax.recipes import systems as systems_lib

GAMMAS = (2, 4, 7)
UNTRAINED = {
    'layers': 2, 'features': (9, 18, 27, 29), 'trunk': 896, 'vocab': 6144,
    'ngram': 3, 'kind': 'diffusion', 'start': (),
}  # fmt: skip


def build(config, checkpoint, requests):
  """Returns the warm systems by name."""
  slots = systems_lib.ar_slots(config, config.model.dtype)
  useless = {'drafter': 'random', 'network': UNTRAINED}
  wanted = {
    'ar': ('ar', slots, {}),
    **{f'fixed {g}': ('specdiff', 0, {'gamma': g}) for g in GAMMAS},
    'adaptive': ('adaptive', 0, {}),
    'useless': ('adaptive', 0, useless),
  }
  result = {}
  for name, (system, slots, changes) in wanted.items():
    own = config.change(**changes)
    one = decoding.system(own, checkpoint, system, slots)
    one.warm_up(requests)
    result[name] = one.calibrated(requests)
    print(name, 'is warm', file=sys.stderr, flush=True)
  return result


def main(argv):
  call = bench.COMMAND.parse(argv)
  config, options = call.config, call.options
  checkpoint = decoding.verifier(config)
  texts = decoding.prompts(config, options.prompts, options.limit)
  requests = decoding.requests(config, checkpoint, texts)
  systems = build(config, checkpoint, requests)
  for name in ('adaptive', 'useless'):
    params = systems[name].drafter_params
    print(f'{name}: cost {params.cost}, acceptance {params.cond[-1]}')
  emitted, seconds = collections.Counter(), collections.defaultdict(list)
  for _ in range(options.rounds or config.bench.rounds):
    for request in requests:
      for name, system in systems.items():
        clock = request_lib.Clock()
        emitted[name] += system.decode([request], clock=clock)[0].emitted
        seconds[name].append(clock.decode)
  speed = {name: emitted[name] / sum(seconds[name]) for name in systems}

  def ratio(name, other):
    """Returns the median over turns: a slow moment meets neighbours alike."""
    turns = zip(seconds[other], seconds[name], strict=True)
    return statistics.median(a / b for a, b in turns)

  over = {g: ratio('adaptive', f'fixed {g}') for g in GAMMAS}
  for name, value in speed.items():
    print(f'{name:9} {value:8.1f} tokens/s, {ratio(name, "ar"):.3f} of ar')
  print(
    json.dumps(
      {
        'device': decoding.device(),
        **{name: round(value, 2) for name, value in speed.items()},
        'adaptive_over_fixed': {g: round(r, 4) for g, r in over.items()},
        'useless_over_ar': round(ratio('useless', 'ar'), 4),
      }
    )
  )


if __name__ == '__main__':
  main(sys.argv[1:])
