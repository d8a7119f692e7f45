"""Distinct drafters in one tree, against one of the same cost.

Why: SpecDiff-2 (2511.00606) leaves open what K distinct drafters would do in
place of K drafts of one. Three of one layer each, of which one has learned code,
one mathematics and one all the rest, write a chain each (system mixture); the
generalist of three layers, trained on all of it, writes the chain of `specdiff`
and the tree of `best_first`, which verifies as many tokens. A variant trains each:
`--config=...:part` has one layer, `...:whole` three.

Cost: 300 steps take five minutes for one layer and ten for three, on 2 CPU cores.

Expected: every output is exact. After 300 steps each tau at 22 tokens is 2.17 of the
three and 2.53 of the one's best-first tree on GSM8K, 2.63 and 2.76 on HumanEval
(docs/results.md): distinct drafters do not pay.

COMMAND (runs/code, runs/maths, runs/general: `collect` of such prompts, see
configs/distill_smollm2.py):
  python -m specdiff_jax distill --config=configs/mixture_smollm2.py:part \
      --config.data=runs/code --workdir=runs/mixture/code
  python -m specdiff_jax distill --config=configs/mixture_smollm2.py:part \
      --config.data=runs/maths --workdir=runs/mixture/maths
  python -m specdiff_jax distill --config=configs/mixture_smollm2.py:part \
      --config.data=runs/general --workdir=runs/mixture/general
  python -m specdiff_jax distill --config=configs/mixture_smollm2.py:whole \
      --config.data=runs/code,runs/maths,runs/general \
      --workdir=runs/mixture/whole
  python -m specdiff_jax bench --config=configs/mixture_smollm2.py
"""

import ml_collections

import specdiff_jax as sd

VARIANTS = ('', 'part', 'whole', 'smoke')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'part' and 'whole' train, 'smoke' is tiny."""
  if variant not in VARIANTS:
    raise ValueError(f'the variants are {VARIANTS}, not {variant!r}')
  smoke = variant == 'smoke'
  config = sd.load_config('distill_smollm2' + (':smoke' if smoke else ''))
  config.network.layers = 1 if variant in ('part', 'smoke') else 3
  config.system = 'mixture'
  config.systems = ('ar', 'specdiff', 'best_first', 'mixture')
  folder = 'runs/mixture/{}/drafter.safetensors'
  name = (lambda part: 'random') if smoke else folder.format
  config.drafter = name('whole')
  config.drafters = {
    'mixture': {
      'first': name('code'),
      'second': name('maths'),
      'third': name('general'),
    }
  }
  config.budget = 1 + 3 * config.gamma
  config.prompts = 'prompts/tiny.jsonl' if smoke else 'prompts/quickstart.jsonl'
  return config
