"""D2SD: a first draft, and a second drafter that goes on from its prefixes.

Why: D2SD (2606.04446) answers a first draft's doubts with a second drafter. Here
the first draft is of the drafter that is shipped, or of a DFlash drafter; the
second is one that learned behind prefixes: the shipped one, trained on (shipped
too), or DFlash (configs/distill_dflash_smollm2.py:second). The same first drafter
as a chain and as a best-first tree of as many verified tokens stands beside it.

Cost: each cycle runs two drafters, the second over K = 4 branches at once, and
verifies 30 tokens.

Expected: exact in every system (in bfloat16 up to near-ties). The shipped second
drafter saw 764 texts: at 17 verified tokens tau is 3.02 on GSM8K and 2.72 on
HumanEval, where the best-first tree has 3.29 and 3.01 (docs/results.md): no gain
yet. `smoke` has random drafters.

COMMAND (the second one trains a drafter of your own; runs/greedy: see
configs/distill_smollm2.py):
  python -m specdiff_jax bench --config=configs/d2sd_smollm2.py
  python -m specdiff_jax distill --config=configs/distill_smollm2.py \
      --config.start_from=smollm2_135m_instruct.safetensors \
      --config.loss=variable_prefix --config.prefix_base=0.9 \
      --config.learning_rate=4e-4 --config.data=runs/greedy --workdir=runs/second
"""

import ml_collections

import specdiff_jax as sd


def get_config(variant: str = '') -> ml_collections.ConfigDict:
  """Returns the recipe; 'smoke' is tiny, with random drafters."""
  if variant not in ('', 'smoke'):
    raise ValueError(f'the variants are "" and "smoke", not {variant!r}')
  smoke = variant == 'smoke'
  config = sd.load_config('tiny:smoke' if smoke else 'quickstart')
  config.system = 'd2sd'
  config.systems = ('ar', 'specdiff', 'best_first', 'd2sd')
  config.gamma = 4 if smoke else 7
  config.branches = 4
  config.budget = 30  # what d2sd has: 1 + 5 * 7, of which branches share 6
  second = 'random' if smoke else 'smollm2_135m_instruct_second.safetensors'
  config.drafters = {'d2sd': {'first': config.drafter, 'second': second}}
  return config
