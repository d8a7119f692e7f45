"""DiffuSpec on SmolLM2-135M-Instruct: path search and draft length, each alone.

Why: DiffuSpec (2510.02358) needs no training: a beam search with an n-gram model
takes the path that is verified out of a diffusion drafter's marginals (CPS), and
a controller chooses how long the next draft is (ADL). The paper's Table 2 has
both ahead of either alone, and CPS ahead of ADL, with a drafter that was never
aligned to its verifier. The variants `neither`, `cps` and `adl` leave parts out; a
drafter of your own is --config.drafter=FILE, with --config.gamma.

Cost: not timed. A cycle is that of `specdiff` in configs/quickstart.py, at gamma 7,
and the search.

Expected: every output is exact, whatever is left out (in bfloat16 up to near-ties).
With the shipped drafter, which is aligned, tau is 3.09 with neither, 2.92 with CPS,
2.75 with ADL and 2.76 with both (16 prompts of GSM8K, 96 tokens, T = 0): the order of
the paper's table does not hold.

COMMAND:
  python -m specdiff_jax ngram --from=gsm8k \
      --field=question,answer --out=runs/ngram.safetensors
  python -m specdiff_jax bench --config=configs/diffuspec_smollm2.py \
      --config.diffuspec.ngram=runs/ngram.safetensors
  python -m specdiff_jax bench --config=configs/diffuspec_smollm2.py:cps \
      --config.diffuspec.ngram=runs/ngram.safetensors
"""

import ml_collections

import specdiff_jax as sd

_PARTS = {'neither': (), 'cps': ('cps',), 'adl': ('adl',), '': ('cps', 'adl')}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'neither', 'cps' or 'adl' leave parts out."""
  if variant not in (*_PARTS, 'smoke'):
    raise ValueError(
      'the variants are "", "neither", "cps", "adl" and "smoke", not '
      f'{variant!r}'
    )
  smoke = variant == 'smoke'
  config = sd.load_config('quickstart:smoke' if smoke else 'quickstart')
  config.system = 'diffuspec'
  config.gamma = 7  # k_max: all that the shipped drafter has
  parts = _PARTS.get(variant, _PARTS[''])
  config.diffuspec = ml_collections.ConfigDict(
    {'cps': 'cps' in parts, 'adl': 'adl' in parts, 'k_min': 3}
  )
  config.systems = ('ar', 'specdiff', 'best_first', 'diffuspec')
  config.budget = 8  # of best_first: as many tokens verified
  config.limit = 1 if smoke else 8
  return config
